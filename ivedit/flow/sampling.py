"""Sampling: integrate a velocity field from noise to data with diffusers' solvers, and guidance.

Both solvers run on one schedule, the one Wan uses: ``linspace(1, 1/1000, steps + 1)[:-1]``, shifted, then 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ivedit.flow.schedule import interpolate, shift_sigma, unshift_sigma

__all__ = ["build_scheduler", "denoise", "guided"]

VelocityFn = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[Iterable[int]], Iterable[int]]


def guided(v_pos: Tensor, v_neg: Tensor, w: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598), ``v_neg + w (v_pos - v_neg)``: 1 gives ``v_pos``."""
    return v_neg + w * (v_pos - v_neg)


def build_scheduler(kind: str, scheduler_config: Mapping[str, Any], shift: float) -> Any:
    """A diffusers solver for the flow ODE.

    Args:
        kind: ``euler`` (FlowMatchEulerDiscreteScheduler) or ``unipc`` (UniPCMultistepScheduler,
            arXiv 2302.04867).
        scheduler_config: The pipeline folder's scheduler config; ``num_train_timesteps`` and, for UniPC,
            ``solver_order`` and ``solver_type`` are taken from it.
        shift: Flow shift k, above 0.

    Raises:
        ValueError: Unknown ``kind`` or ``shift`` not above 0.
    """
    if not shift > 0:
        raise ValueError(f"the flow shift must be above 0, not {shift}")
    # diffusers takes seconds to import; whoever only trains or checks a configuration never pays for it.
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    timesteps = int(scheduler_config.get("num_train_timesteps", 1000))
    if kind == "euler":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=timesteps, shift=shift)
    if kind == "unipc":
        return UniPCMultistepScheduler(
            num_train_timesteps=timesteps,
            solver_order=int(scheduler_config.get("solver_order", 2)),
            solver_type=scheduler_config.get("solver_type", "bh2"),
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=shift,
        )
    raise ValueError(f"unknown scheduler {kind!r}: euler or unipc")


def _shift_of(scheduler: Any) -> float:
    config = scheduler.config
    return float(config.flow_shift if "flow_shift" in config else config.shift)


def _set_sigmas(scheduler: Any, steps: int, start_sigma: float) -> list[float]:
    """Give the solver ``steps`` sigmas from ``start_sigma`` down (0 is appended by it); returns them.

    The grid is even in the unshifted timestep r; the solver shifts it itself.
    """
    shift = _shift_of(scheduler)
    last = 1 / scheduler.config.num_train_timesteps
    r = float(unshift_sigma(torch.tensor(start_sigma, dtype=torch.float64), shift))
    if r <= last:
        lowest = float(shift_sigma(torch.tensor(last, dtype=torch.float64), shift))
        raise ValueError(f"the start sigma must be above {lowest:.4g}, not {start_sigma}")
    grid = torch.linspace(r, last, steps + 1, dtype=torch.float64)[:-1]
    scheduler.set_timesteps(sigmas=grid.numpy())
    # UniPC rounds its timesteps to integers, so its own look-up by timestep would be ambiguous.
    scheduler.set_begin_index(0)
    return [float(s) for s in scheduler.sigmas[:-1]]


@torch.no_grad()
def denoise(
    velocity_fn: VelocityFn,
    noise: Tensor,
    scheduler: Any,
    steps: int,
    progress: Progress | None = None,
    start: tuple[Tensor, float] | None = None,
) -> Tensor:
    """Integrate ``dx/dsigma = v(x, sigma)`` from noise (sigma 1) to data (sigma 0).

    Args:
        velocity_fn: (x (B, ...), sigma (B,)) -> velocity of x's shape; called exactly ``steps`` times.
        noise: (B, ...) standard normal.
        scheduler: From :func:`build_scheduler`; its state is reset, so one scheduler serves many calls.
        steps: Solver steps, at least 1, all of them taken below the start sigma.
        progress: Wraps the iterable of step numbers, e.g. ``tqdm`` or ``rich.progress.track``.
        start: (latents, sigma): begin at ``interpolate(latents, noise, sigma)`` in place of pure noise.

    Returns:
        (B, ...) float32.

    Raises:
        ValueError: ``steps`` below 1, or a start sigma outside (shifted 1/1000, 1].
    """
    if steps < 1:
        raise ValueError(f"sampling needs at least 1 step, not {steps}")
    x = noise.float()
    start_sigma = 1.0
    if start is not None:
        latents, start_sigma = start
        if not 0 < start_sigma <= 1:
            raise ValueError(f"the start sigma must lie in (0, 1], not {start_sigma}")
        x = interpolate(latents.to(x), x, x.new_full((len(x),), start_sigma))
    sigmas = _set_sigmas(scheduler, steps, start_sigma)
    numbers: Iterable[int] = range(steps)
    for i in progress(numbers) if progress else numbers:
        velocity = velocity_fn(x, x.new_full((len(x),), sigmas[i])).float()
        x = scheduler.step(velocity, scheduler.timesteps[i], x, return_dict=False)[0]
    return x
