"""What happens around optimiser steps: averaging, metrics, validation, progress and orderly stops.

All of it hangs on `StepCallback.on_step`, which runs once after each optimiser step, however many micro-batches
a step has. Nothing here waits for the device except every ``every`` steps.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from ivedit.errors import IveditError
from ivedit.training.ema import Ema
from ivedit.training.shares import Shares

__all__ = [
    "EmaCallback",
    "MetricsLogger",
    "StepCallback",
    "Stopper",
    "Validation",
    "ema_weights",
    "find_callback",
    "shares_of",
    "trained_names",
]

logger = logging.getLogger("ivedit.training")

C = TypeVar("C", bound=Callback)


def find_callback(trainer: L.Trainer, kind: type[C]) -> C | None:
    """The trainer's first callback of a kind."""
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]


def trained_names(module: L.LightningModule) -> dict[str, nn.Parameter]:
    """``{name in the module: parameter}`` of ``module.trained_parameters()``, in that order.

    Raises:
        ValueError: A trained parameter is not registered in the module.
    """
    name_of = {id(p): name for name, p in module.named_parameters()}
    parameters: list[nn.Parameter] = module.trained_parameters()  # type: ignore[operator]
    if any(id(p) not in name_of for p in parameters):
        raise ValueError(f"{type(module).__name__}.trained_parameters() returns parameters that it does not hold")
    return {name_of[id(p)]: p for p in parameters}


def shares_of(module: L.LightningModule) -> Shares:
    """What this rank keeps of ``module.trained_parameters()``: all of it, unless the module says otherwise."""
    own = getattr(module, "shares", None)
    return own if isinstance(own, Shares) else Shares(module.trained_parameters())  # type: ignore[operator]


class StepCallback(Callback):
    """Calls `on_step` once after every optimiser step."""

    _seen_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step != self._seen_step:
            self._seen_step = step
            self.on_step(trainer, pl_module, step)

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        """``step`` optimiser steps are done."""


class EmaCallback(StepCallback):
    """Keeps `Ema` of the trained weights, and stores it in checkpoints."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.ema: Ema | None = None
        self._names: list[str] = []
        self._stored: dict[str, Any] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._names = list(trained_names(pl_module))
        self._shares = shares_of(pl_module)
        self.ema = Ema(self._shares.kept, self.decay)
        if self._stored is not None:
            self.ema.updates = int(self._stored["updates"])
            with torch.no_grad():
                for name, average in zip(self._names, self.ema.average, strict=True):
                    average.copy_(self._shares.cut(self._stored["average"][name]))
            self._stored = None

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        if self.ema is not None:
            self.ema.update()

    def state_dict(self) -> dict[str, Any]:
        if self.ema is None:
            return {}
        whole = [self._shares.whole(place, average) for place, average in enumerate(self.ema.average)]
        return {"updates": self.ema.updates, "average": dict(zip(self._names, whole, strict=True))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._stored = state_dict or None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the module holds the averaged weights."""
        if self.ema is None:
            raise RuntimeError("there is no average before fit has started")
        with self.ema.applied():
            yield


@contextmanager
def ema_weights(trainer: L.Trainer) -> Iterator[None]:
    """Inside the block the trained module holds its averaged weights (its own where ``train.ema`` is 0)."""
    callback = find_callback(trainer, EmaCallback)
    with callback.applied() if callback is not None else nullcontext():
        yield


class MetricsLogger(StepCallback):
    """Averages the module's metrics over ``every`` steps and logs them as ``train/<name>``.

    Also ``train/lr`` (of the latest step), ``train/steps_per_second`` and, for a module with ``pairs_per_step``,
    ``train/pairs_per_second``; the first interval, which compiles and captures, is timed apart.
    """

    def __init__(self, tracker: Any, every: int) -> None:
        super().__init__()
        self.tracker = tracker
        self.every = every
        self.latest: dict[str, float] = {}
        self._lr = math.nan
        self._waiting: list[dict[str, Tensor]] = []
        self._since = (0, 0.0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._since = (trainer.global_step, time.perf_counter())

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._lr = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        metrics = getattr(pl_module, "metrics", None)
        if metrics:
            self._waiting.append(dict(metrics))
        if step % self.every == 0 or step >= trainer.max_steps:
            self.flush(trainer, pl_module, step)

    def flush(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        """Log what has gathered since the last time."""
        first, started = self._since
        pop: Any = getattr(pl_module, "pop_metrics", None)
        values = pop() if pop is not None else self._means(step)
        now = time.perf_counter()  # after the means, which wait for the device
        values["lr"] = self._lr
        if step > first:
            speed = (step - first) / max(now - started, 1e-9)
            values["steps_per_second"] = speed
            if hasattr(pl_module, "pairs_per_step"):
                values["pairs_per_second"] = speed * float(pl_module.pairs_per_step)  # type: ignore[arg-type]
        self.latest = values
        if self.tracker is not None:
            self.tracker.log_metrics({f"train/{name}": value for name, value in values.items()}, step)
        self._since = (step, time.perf_counter())

    def _means(self, step: int) -> dict[str, float]:
        names = dict.fromkeys(name for row in self._waiting for name in row)
        means = {}
        for name in names:
            column = torch.stack([row[name].detach().float() for row in self._waiting if name in row])
            means[name] = float(column.mean())
        self._waiting.clear()
        if not math.isfinite(means.get("loss", 0.0)):
            raise IveditError(f"the loss is {means['loss']} within the {self.every} steps before step {step}")
        return means


class Validation(StepCallback):
    """Runs ``module.validate()`` under the averaged weights, every ``every`` steps (0: only after the last)."""

    def __init__(self, tracker: Any, every: int) -> None:
        super().__init__()
        self.tracker = tracker
        self.every = every
        self.step: int | None = None
        self.values: dict[str, float] = {}

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        if (self.every and step % self.every == 0) or step >= trainer.max_steps:
            self.run(trainer, pl_module, step)

    def run(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> dict[str, float]:
        """Validate now, unless it has been done at this step or the module has nothing to validate with."""
        validate: Any = getattr(pl_module, "validate", None)
        if self.step == step or validate is None:
            return self.values
        with ema_weights(trainer), torch.no_grad():
            self.values = validate()
        self.step = step
        if self.tracker is not None and self.values:
            self.tracker.log_metrics({f"val/{name}": value for name, value in self.values.items()}, step)
        return self.values

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "values": dict(self.values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step, self.values = state_dict["step"], dict(state_dict["values"])


class Stopper(StepCallback):
    """Ends a run between two steps, with a checkpoint: on SIGTERM, Ctrl-C, a time limit or a stop file.

    SIGUSR1 is what SLURM sends ahead of a time limit (``--signal=USR1@120``). The first Ctrl-C stops in order; a second
    one at once. ``reason`` says why, None while nobody asked. On several devices any rank's signal or time limit stops
    all of them; the stop file is read by rank 0 alone, since ranks that look at different moments would not agree on
    what it says. All ranks end with rank 0's reason.

    Args:
        max_minutes: Time limit from the start of `fit`; None: none.
        stop_file: Stop when this file exists (a sweep's parent writes it); its first line is the reason. None: none.
    """

    _AGREE_SECONDS = 5.0
    """Ranks ask each other about this often, at a step that rank 0 names the time before."""

    def __init__(self, max_minutes: float | None = None, stop_file: str | Path | None = None) -> None:
        super().__init__()
        self.max_minutes = max_minutes
        self.stop_file = Path(stop_file) if stop_file else None
        self.reason: str | None = None
        self._asked: str | None = None
        self._started = time.monotonic()
        self._next_meeting = 0
        self._last_meeting = (0, 0.0)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # Lightning puts the handlers back that it found before fit.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            self._previous = {
                number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGUSR1)
            }
        self._last_meeting = (trainer.global_step, time.monotonic())
        self._next_meeting = trainer.global_step + 1

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, previous in self.__dict__.pop("_previous", {}).items():
            signal.signal(number, previous)

    def _on_signal(self, number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if self._asked == name == "SIGINT":
            raise KeyboardInterrupt
        self._asked = name
        logger.info("%s: stopping after this step, with a checkpoint", name)

    def _wish(self, first: bool) -> str | None:
        """Why this rank wants to stop; ``first``: it is rank 0."""
        if self._asked:
            return f"stopped by {self._asked}"
        if self.max_minutes is not None and time.monotonic() - self._started > 60 * self.max_minutes:
            return f"train.max_minutes={self.max_minutes:g} is over"
        if self.stop_file is not None and first and self.stop_file.exists():
            lines = self.stop_file.read_text(encoding="utf-8").splitlines()
            return lines[0] if lines else f"asked to stop by {self.stop_file.name}"
        return None

    def _agree(self, trainer: L.Trainer, step: int, wish: int) -> int:
        """The largest wish of all ranks; also sets the step of the next meeting, by rank 0's pace."""
        before, at = self._last_meeting
        now = time.monotonic()
        self._last_meeting = (step, now)
        steps = int(self._AGREE_SECONDS * (step - before) / max(now - at, 1e-3)) if trainer.is_global_zero else 0
        said = torch.tensor([float(wish), float(min(max(steps, 1), 1000)) if steps else 0.0])
        said = said.to(trainer.strategy.root_device)
        torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
        wanted, ahead = said.tolist()
        self._next_meeting = step + max(1, int(ahead))
        return int(wanted)

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        if step >= trainer.max_steps:
            return
        wish = self._wish(trainer.is_global_zero)
        if trainer.world_size > 1:
            # All ranks must stop at the same step; asking costs a synchronisation, so only now and then.
            if step < self._next_meeting:
                return
            number = signal.Signals[self._asked] if self._asked else 1 if wish else 0
            wanted = self._agree(trainer, step, number)
            if not wanted:
                return
            told = f"stopped by {signal.Signals(wanted).name}" if wanted > 1 else "stopped by another rank"
            wish = trainer.strategy.broadcast(wish or told)  # rank 0's words
        if wish is None:
            return
        from ivedit.training.checkpoint import Checkpointer

        self.reason = wish
        checkpointer = find_callback(trainer, Checkpointer)
        if checkpointer is not None:
            checkpointer.save(trainer, pl_module)
        trainer.should_stop = True
