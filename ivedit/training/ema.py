"""Exponential moving average of the trained weights, in float32, on their device.

Lightning's own callback copies the whole module, frozen backbone included; this one holds the trained weights
alone and updates them with a few fused kernels, without a device synchronisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Ema", "ema_decay"]


def ema_decay(decay: float, updates: int) -> float:
    """Decay of the ``updates``-th update (from 0): ``min(decay, (1 + n) / (10 + n))``.

    The warm-up lets a short run forget its initialisation: after n updates the average looks back over about
    n/9 of them until ``decay`` takes over.
    """
    return min(decay, (1 + updates) / (10 + updates))


class Ema:
    """``average <- d average + (1 - d) weight`` with ``d = ema_decay(decay, updates)``.

    Args:
        parameters: The trained weights, any floating type; addresses must not change (a captured step reads them).
        decay: In [0, 1); 0 makes the average a copy of the weights.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"the EMA decay must lie in [0, 1], not {decay}")
        self.parameters = list(parameters)
        self.decay = decay
        self.updates = 0
        with torch.no_grad():
            self.average: list[Tensor] = [p.detach().float().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the current weights."""
        weight = 1 - ema_decay(self.decay, self.updates)
        current: list[Tensor] = [p.detach().float() for p in self.parameters]
        torch._foreach_lerp_(self.average, current, weight)
        self.updates += 1

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """The parameters become the average, for good."""
        torch._foreach_copy_([p.detach() for p in self.parameters], self.average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the parameters hold the average, in place; afterwards their own values again."""
        own = [p.detach().clone() for p in self.parameters]
        self.copy_to_parameters()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([p.detach() for p in self.parameters], own)
