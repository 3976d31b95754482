"""Muon: orthogonalised momentum for the matrices of an editor, AdamW for its vectors.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with the update scaled to the root mean
square of an AdamW step (arXiv 2502.16982), so that one learning rate serves both. `torch.optim.Muon` computes the same,
one matrix at a time; an editor has 150 small ones of a few shapes, which are orthogonalised here together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ivedit.training.shares import Shares

__all__ = ["MuonAdamW", "muon_flops", "orthogonalise"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_RMS_OF_ADAMW = 0.2
_AT_ONCE = 2**26
"""Weights orthogonalised together: enough to fill a GPU, with a step's copies of them held under 2 GB."""


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearly the nearest semi-orthogonal matrices: five quintic Newton-Schulz steps, singular values end near 1.

    Args:
        matrices: (N, a, b).

    Returns:
        (N, a, b), in bfloat16, in which the iteration runs (it is stable there).
    """
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = x @ x.mT
        # a x + (b G + c G G) x, with each sum made inside the product: x is large, and read as rarely as can be.
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def muon_flops(shapes: Iterable[Sequence[int]]) -> int:
    """Counted operations of one step's orthogonalisation (a multiply-add is two).

    Five times x x^T, its square, and their product with x: for sides s <= l, 5 (4 s^2 l + 2 s^3). It does not depend on
    the batch: about 1% of a step of 16 pairs of 1,560 tokens.

    Args:
        shapes: of every trained weight; those that are no matrices cost nothing.
    """
    sides = [(min(shape), max(shape)) for shape in shapes if len(shape) == 2 and min(shape) > 1]
    return sum(_STEPS * (4 * short * short * long + 2 * short**3) for short, long in sides)


class MuonAdamW(torch.optim.AdamW):
    """One optimiser: Muon with Nesterov momentum steps the matrices, fused AdamW everything else, without decay.

    A step whose gradients are not finite (`found_inf`, see `ivedit.training.optim.clip_and_guard`) changes nothing.

    Args:
        parameters: What is trained.
        lr: Learning rate of both.
        weight_decay: Decoupled, of the matrices.
        beta1: Of AdamW.
        beta2: Of AdamW.
        momentum: Of Muon, in [0, 1).
        shares: Says which part of each parameter these are, where ranks share them; None: they are whole.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        beta1: float,
        beta2: float,
        momentum: float,
        shares: Shares | None = None,
    ) -> None:
        every = list(parameters)
        self._shares = shares if shares is not None else Shares(every)
        matrices = [p for p in every if p.ndim == 2 and min(self._shares.shape(p)) > 1]
        chosen = {id(p) for p in matrices}
        groups = [
            {"params": matrices, "weight_decay": weight_decay, "momentum": momentum},
            {"params": [p for p in every if id(p) not in chosen], "weight_decay": 0.0, "momentum": None},
        ]
        groups = [group for group in groups if group["params"]]
        super().__init__(groups, lr=lr, betas=(beta1, beta2), fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all groups."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if group["momentum"] is None]
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["momentum"] is not None:
                shapes: dict[torch.Size, list[nn.Parameter]] = {}
                for p in group["params"]:
                    if p.grad is not None:
                        shapes.setdefault(self._shares.shape(p), []).append(p)
                for shape, alike in shapes.items():
                    count = max(1, _AT_ONCE // shape.numel())
                    for start in range(0, len(alike), count):
                        self._step_alike(
                            alike[start : start + count], shape, float(group["lr"]), group["weight_decay"],
                            group["momentum"],
                        )  # fmt: skip
        return loss

    def _step_alike(
        self, parameters: list[nn.Parameter], shape: torch.Size, lr: float, decay: float, momentum: float
    ) -> None:
        """Muon on matrices of one shape, of which these may be this rank's rows; every rank has some of each."""
        averages = []
        for p in parameters:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
                state["step"] = torch.zeros(())  # AdamW's loader expects one
            averages.append(state["momentum_buffer"])
        gradients = torch.stack([p.grad for p in parameters])  # type: ignore[misc]
        average = torch.stack(averages)
        # A tensor on the device, 0 for a bad step: nothing waits for it.
        found = getattr(self, "found_inf", None)
        alive = gradients.new_ones(()) if found is None else 1 - found.to(gradients.dtype)
        gradients = torch.where(alive > 0, gradients, 0.0)
        average = torch.lerp(average, gradients, (1 - momentum) * alive)
        # In bfloat16 already, as the first thing that is done to it: half as much to gather.
        direction = torch.lerp(gradients, average, momentum).bfloat16()
        update = self._shares.cut(orthogonalise(self._shares.gather(direction, shape[0])), dim=1).to(average.dtype)
        torch._foreach_copy_(averages, list(average.unbind(0)))
        step = update * (alive * -lr * _RMS_OF_ADAMW * max(shape) ** 0.5)
        weights: list[Tensor] = list(parameters)
        torch._foreach_mul_(weights, 1 - lr * decay * alive)  # type: ignore[arg-type]  # a scalar tensor serves too
        torch._foreach_add_(weights, list(step.unbind(0)))
