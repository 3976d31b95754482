"""Mean loss, overall and by sigma: which part of the noise range has been learned."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["BINS", "BinMeans", "bin_of", "on_host"]

BINS = 10


def bin_of(sigma: Tensor) -> Tensor:
    """Bin of each sigma in [0, 1]: (B,) int64. Bin i is (i / 10, (i + 1) / 10]; 0 belongs to the first."""
    return (torch.ceil(sigma.double() * BINS - 1e-6).long() - 1).clamp(0, BINS - 1)


class BinMeans:
    """Sums of losses and their counts by bin, on the host. Losses that are not finite are counted apart."""

    def __init__(self) -> None:
        # Three rows: sums, counts, and in the first entry the number of losses that were not finite.
        self.state = torch.zeros(3, BINS, dtype=torch.float64)

    def add(self, sigma: Tensor, losses: Tensor) -> None:
        """Take in (B,) sigmas and their (B,) losses, both on the CPU."""
        finite = torch.isfinite(losses)
        place = bin_of(sigma[finite])
        self.state[0].index_add_(0, place, losses[finite].double())
        self.state[1].index_add_(0, place, torch.ones(len(place), dtype=torch.float64))
        self.state[2, 0] += (~finite).sum()

    def pop(self) -> dict[str, float]:
        """``loss``, ``loss_sigma/0.0-0.1`` and so on for bins that have any, ``not_finite`` where some were; reset."""
        sums, counts, bad = self.state
        values: dict[str, float] = {}
        if counts.sum() > 0:
            values["loss"] = float(sums.sum() / counts.sum())
            for i in range(BINS):
                if counts[i] > 0:
                    values[f"loss_sigma/{i / BINS:.1f}-{(i + 1) / BINS:.1f}"] = float(sums[i] / counts[i])
        if bad[0] > 0:
            values["not_finite"] = float(bad[0])
        self.state = torch.zeros_like(self.state)
        return values


def on_host(records: list[tuple[int, Tensor, Tensor]]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(step, sigma, losses) with the losses brought over in one copy."""
    if records:
        losses = torch.stack([row for _, _, row in records]).cpu()
        for (step, sigma, _), row in zip(records, losses, strict=True):
            yield step, sigma, row
