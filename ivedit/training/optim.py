"""The optimisers, with a linear warm-up and a cosine decay, and clipping that never waits for the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ivedit.training.muon import MuonAdamW
from ivedit.training.shares import Shares

__all__ = ["build_adamw", "build_optimizer", "clip_and_guard", "lr_factor", "warmup_cosine"]


def lr_factor(step: int, *, warmup: int, total: int, final: float) -> float:
    """Share of the peak learning rate at optimiser step ``step`` (from 0).

    ``(step + 1) / warmup`` while warming up; then ``final + (1 - final) (1 + cos(pi t)) / 2`` with t going from
    0 at the end of the warm-up to 1 at step ``total - 1``; ``final`` from there on.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def warmup_cosine(optimizer: torch.optim.Optimizer, *, warmup: int, total: int, final: float) -> LambdaLR:
    """`lr_factor` as a scheduler; a warm-up longer than the run is cut to a tenth of the run."""
    if warmup >= total:
        warmup = total // 10
    return LambdaLR(optimizer, lambda step: lr_factor(step, warmup=warmup, total=total, final=final))


def build_adamw(
    parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float, beta1: float, beta2: float
) -> torch.optim.AdamW:
    """Fused AdamW; no weight decay on biases, norms and other vectors."""
    trained = list(parameters)
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), fused=True)


def build_optimizer(
    parameters: Iterable[nn.Parameter], train: Any, shares: Shares | None = None
) -> torch.optim.Optimizer:
    """What ``train.optimizer`` names (``train`` is the configuration's section), over these parameters.

    ``shares`` says which parts of larger parameters they are, where ranks share one copy.
    """
    shared = {"lr": train.lr, "weight_decay": train.weight_decay, "beta1": train.beta1, "beta2": train.beta2}
    if train.optimizer == "muon":
        return MuonAdamW(parameters, momentum=train.momentum, shares=shares, **shared)
    return build_adamw(parameters, **shared)


@torch.no_grad()
def clip_and_guard(
    optimizer: torch.optim.Optimizer,
    gradients: Sequence[Tensor],
    max_norm: float,
    *,
    total: Callable[[Tensor], Tensor] = lambda norm: norm,
) -> Tensor:
    """Scale ``gradients`` in place to a norm of at most ``max_norm`` (0: leave them) and return their norm.

    With a norm that is not finite, the fused optimiser's next step changes nothing: it reads ``found_inf``, the
    switch that loss scaling uses, on the device. So one bad step costs one step and no synchronisation. ``total`` makes
    the norm of the whole gradient of that of these, where ranks hold parts of it.

    Returns:
        () float32: the norm before clipping, on the gradients' device.
    """
    norm = total(torch.linalg.vector_norm(torch.stack(torch._foreach_norm([g.float() for g in gradients]))))
    optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
    if max_norm > 0:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(list(gradients), factor)
    return norm
