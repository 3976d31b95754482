"""What the framework costs over a bare loop, window by window: a part of `wan.py`.

Between two windows of the real training (Trainer, schedule, draws by seed, metrics, progress, data module) a bare loop
takes as many steps: the next of a few batches that are held, noise and times drawn on the device, then the training's
own captured step, clipping, optimiser and averaging. Both run the very same graph over the same weights in the same
process, seconds apart. Each window of the framework is compared with the mean of the bare ones before and behind it, so
that a clock that sinks or a neighbour that comes cancels; what is told is the median over the windows
(`wan_tables.overhead`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
import torch

from ivedit.flow import sample_sigma
from ivedit.training import EditModule, RunLoader, build_trainer, fit
from ivedit.training.callbacks import EmaCallback, StepCallback, find_callback
from ivedit.training.captured import StaticStep
from ivedit.training.optim import clip_and_guard

__all__ = ["BareWindows", "side_by_side_windows"]


class BareWindows(StepCallback):
    """Takes a window of bare steps after each window of the training; the first one of either only warms up.

    Args:
        held: batches of the data module, on the device.
        window: steps of a window.

    Attributes:
        framework: seconds of each window of the training but the first, which compiles and captures.
        bare: seconds of each window of the bare loop: one before each of these, and one behind the last.
    """

    def __init__(self, held: Sequence[Any], window: int) -> None:
        super().__init__()
        self.held, self.window = held, window
        self.framework: list[float] = []
        self.bare: list[float] = []
        self._began: float | None = None
        self._fixed: list[dict[str, Any]] = []
        self._eager: StaticStep | None = None

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        """After the logging of this step, which is the framework's."""
        if step % self.window:
            return
        now = _now(pl_module.device)
        if self._began is not None:
            self.framework.append(now - self._began)
        else:
            self._steps(trainer, pl_module)
        began = _now(pl_module.device)
        self._steps(trainer, pl_module)
        self._began = _now(pl_module.device)
        self.bare.append(self._began - began)

    def _steps(self, trainer: L.Trainer, module: Any) -> None:
        cfg, device, weights = module.cfg, module.device, module.trained_parameters()
        if not self._fixed:
            count = len(self.held[0]["target"])
            r = torch.rand(count, device=device)
            self._fixed = [
                module.step_tensors(batch, r, range(count), shift=module.shift, kind=cfg.flow.timesteps)
                for batch in self.held
            ]
        captured = module._steps if module._captures else self._eager
        if captured is None:
            captured = self._eager = StaticStep(module.training_losses, weights, device, graph=False)
        optimizer, averaging = trainer.optimizers[0], find_callback(trainer, EmaCallback)
        for step in range(self.window):
            fixed = self._fixed[step % len(self._fixed)]
            r = torch.rand(len(fixed["target"]), device=device)
            sigma = sample_sigma(
                cfg.flow.timesteps, r, shift=module.shift, mean=cfg.flow.logit_mean, std=cfg.flow.logit_std
            )
            tensors = fixed | {"sigma": sigma, "noise": torch.randn_like(fixed["target"])}
            _, gradients = captured(tensors)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            clip_and_guard(optimizer, gradients, cfg.train.clip)
            optimizer.step()
            if averaging is not None and averaging.ema is not None:
                averaging.ema.update()


def _now(device: Any) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def side_by_side_windows(
    module: EditModule, batches: Callable[[int], Iterator[Any]], held: Sequence[Any], windows: int
) -> BareWindows:
    """Train ``windows`` windows of ``train.log_every`` steps, and one before them, with the bare loop between them.

    Args:
        module: one draw a pair and one micro-batch a step.
        batches: of the training, from a position on.
        held: batches of the same shapes for the bare loop.
        windows: of the training that are timed.

    Raises:
        ValueError: the module's step is another one.
    """
    cfg = module.cfg
    if cfg.train.accumulate != 1 or cfg.flow.draws_per_pair != 1:
        raise ValueError("the bare loop takes one draw a pair and one micro-batch a step")
    steps = (windows + 1) * cfg.train.log_every
    between = BareWindows(held, cfg.train.log_every)
    trainer = build_trainer(cfg, None, None, max_steps=steps, callbacks=[between])
    fit(trainer, module, RunLoader(steps, batches))
    return between
