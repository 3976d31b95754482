"""The gate scored as what it replaces: a mask of where to edit."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ivedit.evaluation.metrics.base import ClipMetric, Reference

__all__ = ["GateAUC", "token_coverage", "weighted_auc"]


def token_coverage(mask: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Share of each token's pixels that the mask covers.

    Args:
        mask: (B, T, 1, H, W) bool or in [0, 1].
        frames: Latent frames F; the first stands for pixel frame 0, each later one for (T - 1) / (F - 1) frames.
        height: Token rows; they need not divide H.
        width: Token columns.

    Returns:
        (B, F, height * width) float32 in [0, 1].
    """
    b, t, _, h, w = mask.shape
    pooled = F.adaptive_avg_pool2d(mask.reshape(b * t, 1, h, w).float(), (height, width))
    pooled = pooled.reshape(b, t, height * width)
    if frames == 1:
        if t != 1:
            raise ValueError(f"one latent frame cannot stand for {t} pixel frames")
        return pooled
    if (t - 1) % (frames - 1):
        raise ValueError(f"{t} pixel frames do not map onto {frames} latent frames")
    later = pooled[:, 1:].reshape(b, frames - 1, -1, height * width).mean(dim=2)
    return torch.cat((pooled[:, :1], later), dim=1)


def weighted_auc(scores: Tensor, positive: Tensor) -> Tensor:
    """Area under the ROC curve when item i is positive to the degree ``positive[i]`` and negative for the rest.

    It equals the pixel-wise AUC of the scores upsampled to pixels when ``positive`` is the share of a token's pixels
    inside the mask: the chance that a random pixel inside scores above a random pixel outside, ties counting half.

    Args:
        scores: (..., M).
        positive: (..., M) in [0, 1], the same shape.

    Returns:
        (...); NaN where everything is positive or everything negative.
    """
    order = scores.argsort(dim=-1)
    ranked = scores.gather(-1, order).contiguous()
    weights = positive.gather(-1, order).double()
    negative = F.pad((1 - weights).cumsum(dim=-1), (1, 0))
    below = negative.gather(-1, torch.searchsorted(ranked, ranked, side="left"))
    up_to = negative.gather(-1, torch.searchsorted(ranked, ranked, side="right"))
    won = (weights * (below + up_to) / 2).sum(dim=-1)
    total = weights.sum(dim=-1) * (1 - weights).sum(dim=-1)
    return torch.where(total > 1e-9, won / total, torch.nan).float()


class GateAUC(ClipMetric):
    """AUC of gate maps against the true edit mask, for each block and sigma: 0.5 is blind, near 1 is a mask.

    `update` takes the maps in place of edited pixels: ``update(maps, reference)`` with maps (B, K, S, F, h * w),
    K blocks, S values of sigma, tokens of a (h, w) grid given at construction. `compute` gives (K, S).
    """

    higher_is_better = True

    def __init__(self, grid: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grid = grid

    def update(self, maps: Tensor, reference: Reference) -> None:  # type: ignore[override]
        """Score one batch of gate maps (B, K, S, F, N)."""
        if maps.ndim != 5 or maps.shape[-1] != self.grid[0] * self.grid[1]:
            raise ValueError(f"gate maps must be (B, K, S, F, {self.grid[0] * self.grid[1]}), got {tuple(maps.shape)}")
        b, k, s, f, n = maps.shape
        coverage = token_coverage(reference.mask, f, *self.grid).to(maps.device)
        flat = coverage.reshape(b, 1, 1, f * n).expand(b, k, s, f * n)
        assert reference.clips is not None
        self.values.append(weighted_auc(maps.float().reshape(b, k, s, f * n), flat).to(self.device))
        self.clips.append(reference.clips.to(self.device))

    def per_clip_mean(self) -> Tensor:
        """(M,) mean over blocks and sigmas, in the order of clip numbers."""
        return self.per_clip()[1].flatten(1).nanmean(dim=1)
