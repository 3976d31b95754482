"""Everything that knows MLflow, and nothing else may: runs, and the sweeps above them, for comparing in a browser.

The run folder is the truth and MLflow a view of it, which can be made again at any time.
"""

from ivedit.tracking.reading import fetch_runs, fetch_sweep
from ivedit.tracking.run import MlflowTracker, import_run, make_tracker
from ivedit.tracking.sweep import ChildRun, SweepRun

__all__ = ["ChildRun", "MlflowTracker", "SweepRun", "fetch_runs", "fetch_sweep", "import_run", "make_tracker"]
