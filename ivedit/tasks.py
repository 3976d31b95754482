"""Tasks from outside: what ``task=`` can name beside the package's own.

A module listed in ``plugins:`` registers a function that does a whole run. It is called with the checked
configuration, the `RunFolder` and the `Tracker`; folder, log, states, MLflow and exit codes are seen to as for every
run, and a task that notices a request to stop (a signal, the file that ``IVEDIT_STOP_FILE`` names) raises `Stopped`::

    from ivedit.tasks import register

    @register("count")
    def count(cfg, run, tracker):
        for step in range(1, cfg.train.max_steps + 1):
            tracker.log_metrics({"train/loss": 1 / step}, step)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ivedit.registry import Registry

if TYPE_CHECKING:
    from ivedit.config.schema import Config
    from ivedit.recording import Tracker
    from ivedit.runfolder import RunFolder

__all__ = ["TASKS", "Task", "register"]

Task = Callable[["Config", "RunFolder", "Tracker"], None]

TASKS: Registry[Task] = Registry("task")
register = TASKS.register
