"""A progress bar that shows only when something takes long, and a line in the log about what was done."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress

__all__ = ["Progress"]

log = logging.getLogger(__name__)

_PATIENCE = 2.0  # seconds of work before a bar appears


class Progress:
    """Use as a context; call `advance(n)` as n of `total` are done.

    Args:
        what: Shown beside the bar.
        total: How many there are; with 0 nothing is shown or said.
        show: Whether this process may draw (one rank does).
    """

    def __init__(self, what: str, total: int, *, show: bool = True) -> None:
        self.what = what
        self.total = total
        self.show = show
        self.done = 0
        self._started = time.monotonic()
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        return self

    def advance(self, count: int) -> None:
        """`count` more are done."""
        self.done += count
        if self._bar is None and self.show and time.monotonic() - self._started > _PATIENCE:
            self._bar = _make_bar()
            self._bar.start()
            self._bar.add_task(self.what, total=self.total)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self.done:
            log.info("%s: %d in %.1f s", self.what, self.done, time.monotonic() - self._started)


def _make_bar() -> rich.progress.Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )
