"""A progress bar on a terminal, plain lines every few seconds anywhere else."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

import lightning as L

from ivedit.training.callbacks import MetricsLogger, StepCallback, find_callback

if TYPE_CHECKING:
    import rich.progress

__all__ = ["ProgressLines"]

logger = logging.getLogger("ivedit.training")


class ProgressLines(StepCallback):
    """Steps done, latest logged loss, speed and time left. Costs no device synchronisation.

    Args:
        seconds: Time between lines where standard error is not a terminal.
        terminal: Draw a bar; None: when standard error is a terminal.
    """

    def __init__(self, seconds: float = 15.0, terminal: bool | None = None) -> None:
        super().__init__()
        self.seconds = seconds
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self._bar: rich.progress.Progress | None = None
        self._start = (0, 0.0)
        self._said_at = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        now = time.monotonic()
        self._start, self._said_at = (trainer.global_step, now), now
        if not trainer.is_global_zero or trainer.global_step >= trainer.max_steps:
            return
        if self.terminal:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.description}"), console=Console(stderr=True),
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step)

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        if not trainer.is_global_zero:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=self._facts(trainer))
            return
        now = time.monotonic()
        if now - self._said_at >= self.seconds or step >= trainer.max_steps:
            self._said_at = now
            first, started = self._start
            left = (trainer.max_steps - step) * (now - started) / max(1, step - first)
            logger.info("step %d/%d  %s  %.0f s left", step, trainer.max_steps, self._facts(trainer), left)

    def _facts(self, trainer: L.Trainer) -> str:
        metrics = find_callback(trainer, MetricsLogger)
        latest = metrics.latest if metrics else {}
        parts = []
        if "loss" in latest:
            parts.append(f"loss {latest['loss']:.4f}")
        if "pairs_per_second" in latest:
            parts.append(f"{latest['pairs_per_second']:.0f} pairs/s")
        elif "steps_per_second" in latest:
            parts.append(f"{latest['steps_per_second']:.1f} steps/s")
        return "  ".join(parts)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()
