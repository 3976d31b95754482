"""What a person sees while a sweep runs: one table on a terminal, a line per change anywhere else.

States come from the study, so the table shows the slots of every machine; steps and metrics come from the run folders
that this machine can read. Anywhere but on a terminal the lines of the sweep's log are printed as they come.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivedit.config.fields import show
from ivedit.sweeping.claims import SlotState
from ivedit.sweeping.spec import Stage
from ivedit.sweeping.worker import LOG

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

__all__ = ["Board", "Progress", "duration", "summary", "who"]

TAIL_BYTES = 8192
_TOLD = ("val/loss", "train/loss")
_ORDER = {"RUNNING": 0, "COMPLETE": 1, "PRUNED": 1, "FAIL": 1, "WAITING": 2}


@dataclass(frozen=True)
class Progress:
    """How far a running child is. ``left``: seconds of training; None: not known yet."""

    step: int | None = None
    steps: int | None = None
    metric: str | None = None
    left: float | None = None

    @classmethod
    def read(cls, folder: Path, metric: str | None = None) -> Progress:
        """From the end of metrics.jsonl and the number of steps in tracked.json; ``metric``: shown if it is there."""
        rows = list(_last_rows(folder / "metrics.jsonl"))
        try:
            told = json.loads((folder / "tracked.json").read_text(encoding="utf-8"))["params"].get("steps")
            steps = int(told) if told is not None else None
        except (OSError, ValueError, KeyError):
            steps = None
        step, shown, speed = None, None, None
        for row in rows:
            step = max(step or 0, int(row["step"]))
            speed = row.get("train/steps_per_second", speed)
            for name in (metric, *_TOLD):
                if name is not None and name in row:
                    shown = f"{name} {float(row[name]):.4g}"
                    break
        left = (steps - step) / speed if steps and step is not None and isinstance(speed, float) and speed > 0 else None
        return cls(step, steps, shown, left)


def _last_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and "step" in row:
                yield row


def who(stage: Stage, state: SlotState) -> str:
    """A slot in words: ``ablation_plain, seed 3``, or a search's parameters: ``lr 0.002, width 64``."""
    if stage.cells is not None:
        cell = stage.cells[state.slot]
        tuned = "".join(f", {key.rpartition('.')[2]} {show(value)}" for key, value in cell.tuned.items())
        return f"{cell.arm}, seed {cell.seed}{tuned}" if cell.arm else cell.label
    if not state.params:
        return "parameters not drawn yet"
    return ", ".join(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in state.params.items())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else show(value)


def duration(seconds: float | None) -> str:
    """``12 s``, ``4 min``, ``2 h 05 min``; empty when it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def summary(stage: Stage, states: Sequence[SlotState]) -> str:
    """A stage in a line: ``final: 12 of 45 complete, 1 failed, 4 running, 28 waiting; about 25 min left``."""
    counts: Counter[str] = Counter("WAITING" if s.state == "FAIL" and not s.ended else s.state for s in states)
    parts = [f"{stage.name}: {counts['COMPLETE']} of {len(states)} complete"]
    words = {"PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
    parts += [f"{counts[name]} {word}" for name, word in words.items() if counts[name]]
    seconds = [float(state.facts["seconds"]) for state in states if "seconds" in state.facts]
    text = ", ".join(parts)
    if seconds and counts["RUNNING"]:
        # A running slot is half done on average; a waiting one has all of a run's length before it.
        left = sum(seconds) / len(seconds) * (counts["WAITING"] + counts["RUNNING"] / 2) / counts["RUNNING"]
        text += f"; about {duration(left)} left"
    return text


class Board:
    """Shows a sweep's stages as they go. Use it as a context manager and call `show` now and then.

    Args:
        folder: The sweep's folder, whose log is followed where there is no terminal.
        console: Where to draw; None: standard output.
        terminal: Draw the table; None: when the console is a terminal.
        quiet: Show nothing at all.
    """

    def __init__(
        self, folder: Path, *, console: Console | None = None, terminal: bool | None = None, quiet: bool = False
    ) -> None:
        from rich.console import Console as RichConsole

        self.console = console or RichConsole(file=sys.stdout)
        self.terminal = self.console.is_terminal if terminal is None else terminal
        self.quiet = quiet
        self._log = folder / LOG
        self._offset = self._log.stat().st_size if self._log.exists() else 0
        self._live: Any = None

    def __enter__(self) -> Board:
        if self.terminal and not self.quiet:
            from rich.live import Live

            self._live = Live(console=self.console, auto_refresh=False, transient=False)
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def end(self) -> None:
        """Leave the table as it is: what is said from now on stands below it."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._follow()

    def note(self, text: str) -> None:
        """Something said to the person: a line above the table while it is drawn, and in its turn otherwise."""
        if not self.quiet:
            self._print(text)

    def show(self, stages: Sequence[tuple[Stage, Sequence[SlotState]]]) -> None:
        """Draw ``stages`` as they are now, or print what the log has got since."""
        self._follow()
        if self._live is not None:
            self._live.update(self.picture(stages), refresh=True)

    def picture(self, stages: Sequence[tuple[Stage, Sequence[SlotState]]]) -> Group:
        """The table: a line for each stage, then its running slots, the last ended ones and the next waiting ones."""
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = [Text(summary(stage, states), style="bold") for stage, states in stages]
        if stages:
            stage, states = stages[-1]
            room = max(5, self.console.size.height - len(stages) - 4)
            parts.append(slot_table(stage, _pick(states, room)))
        return Group(*parts)

    def _follow(self) -> None:
        """Print the new lines of the log, of all workers, where there is no table."""
        if self.quiet or self.terminal:
            return
        try:
            with open(self._log, "rb") as file:
                file.seek(self._offset)
                content = file.read()
        except OSError:
            return
        whole = content.rfind(b"\n") + 1
        self._offset += whole
        for line in content[:whole].decode("utf-8", "replace").splitlines():
            self._print(line)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _pick(states: Sequence[SlotState], room: int) -> list[SlotState]:
    """As many slots as fit: all that run, then the last that ended, then the next that wait; in order of slots."""
    latest = sorted(states, key=lambda s: (_ORDER[s.state], -s.slot if _ORDER[s.state] == 1 else s.slot))
    return sorted(latest[:room], key=lambda state: state.slot)


def slot_table(stage: Stage, states: Sequence[SlotState]) -> Table:
    """The slots as a table for a terminal."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    first = "arm and seed" if stage.cells is not None else "trial"
    for name in ("slot", first, "state", "step", "metric", "time left", "worker"):
        # A slot is one line: a long reason is cut, and stands whole in the log.
        table.add_column(
            name, no_wrap=True, overflow="ellipsis", justify="right" if name in ("slot", "step") else "left",
            max_width=40 if name == "metric" else None,
        )  # fmt: skip
    for state in states:
        table.add_row(*row_of(stage, state), style=_STYLES.get(state.state))
    return table


_STYLES: Mapping[str, str] = {"RUNNING": "cyan", "COMPLETE": "green", "FAIL": "red", "PRUNED": "yellow"}


def row_of(stage: Stage, state: SlotState) -> tuple[str, ...]:
    """The cells of a slot: what it is, its state, step, metric, time left, and who works on it."""
    step = metric = left = worker = ""
    told: str = state.state if state.state != "FAIL" or state.ended else "again"
    if state.state == "RUNNING":
        now = Progress.read(state.run_folder, stage.pruner.metric if stage.pruner else None)
        step = "" if now.step is None else f"{now.step}/{now.steps}" if now.steps else str(now.step)
        metric, left = now.metric or "", duration(now.left)
        worker = "" if state.worker is None else f"{state.worker.name}, {state.worker.host}"
        if now.step is None and state.since is not None and time.time() - state.since < 3600:
            metric = "starting"
    elif state.values is not None:
        metric = ", ".join(f"{o.metric} {v:.4g}" for o, v in zip(stage.objectives, state.values, strict=True))
        left = duration(state.facts.get("seconds")) and f"took {duration(state.facts.get('seconds'))}"
    elif state.reason:
        metric = state.reason
    return str(state.slot), who(stage, state), told.lower(), step, metric, left, worker
