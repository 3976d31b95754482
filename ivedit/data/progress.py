"""A progress bar that shows only when something takes long, and lines in the log about what was done.

Where there is no terminal to draw on (a batch job), a line now and then says how far it is, how fast and how long
it will still take.
"""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress

__all__ = ["Progress"]

log = logging.getLogger(__name__)

_PATIENCE = 2.0  # seconds of work before a bar appears
_LINE_EVERY = 30.0  # seconds between lines where no bar can be drawn


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
        self._said = self._started
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        return self

    def advance(self, count: int) -> None:
        """`count` more are done."""
        self.done += count
        now = time.monotonic()
        if self._bar is None and self.show and now - self._started > _PATIENCE and sys.stderr.isatty():
            self._bar = _make_bar()
            self._bar.start()
            self._bar.add_task(self.what, total=self.total, rate="")
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, rate=self._rate(now))
        elif self.show and now - self._said > _LINE_EVERY and self.done < self.total:
            self._said = now
            left = (self.total - self.done) * (now - self._started) / self.done
            log.info("%s: %d of %d, %s, %s left", self.what, self.done, self.total, self._rate(now), _duration(left))

    def _rate(self, now: float) -> str:
        rate = self.done / max(now - self._started, 1e-9)
        return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.1f}/s"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self.done:
            now = time.monotonic()
            log.info("%s: %d in %.1f s (%s)", self.what, self.done, now - self._started, self._rate(now))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _make_bar() -> rich.progress.Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )
