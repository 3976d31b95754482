"""What an edit is worth: pixel and motion metrics, intervals over clips, and the suite that runs them.

`evaluate` makes a run's tables and pictures, `quick_scores` two numbers for a pilot, `format_table` shows stored
results; `ivedit.evaluation.metrics` holds the metrics themselves. The three are imported when first asked for, so
that using one metric does not load a diffusion model's classes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivedit.evaluation.quick import quick_scores
    from ivedit.evaluation.suite import evaluate
    from ivedit.evaluation.tables import format_table

__all__ = ["evaluate", "format_table", "quick_scores"]

_PLACES = {"evaluate": "suite", "format_table": "tables", "quick_scores": "quick"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
