"""Where an edit changed its source, estimated from pixels: a stand-in for a mask that nobody gave, and labelled so."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CHANGED", "agreed_mask", "estimate_mask"]

CHANGED = 24.0
"""Grey levels (of 255) that a neighbourhood must have changed by: decoders and VAEs change all of them by less."""


def estimate_mask(source: Tensor, edited: Tensor) -> Tensor:
    """Pixels that differ between two clips by more than what a decoder does to all of them.

    The largest difference of the three colours, averaged over a 64th of the frame (at least 3 pixels), above `CHANGED`.
    (Otsu's threshold, the usual choice, was tried: where an edit changes some pixels much more than others it loses
    half of them.)

    Args:
        source: uint8 (T, 3, H, W).
        edited: The same shape.

    Returns:
        bool (T, 1, H, W).
    """
    difference = torch.stack(
        [(a.int() - b.int()).abs_().amax(dim=0) for a, b in zip(source, edited, strict=True)]
    ).unsqueeze(1)
    side = max(3, min(source.shape[-2:]) // 64 | 1)
    smooth = torch.cat([
        F.avg_pool2d(frame.float(), side, stride=1, padding=side // 2, count_include_pad=False)
        for frame in difference.split(8)
    ])  # fmt: skip
    return smooth > CHANGED


def agreed_mask(source: Tensor, edits: Sequence[Tensor]) -> Tensor:
    """Pixels that at least half of the methods changed: one estimated mask that serves all of them alike.

    With one method it is that method's own, so what it spoils counts as edited and never as damage.
    """
    votes = torch.stack([estimate_mask(source, edited) for edited in edits]).float().mean(dim=0)
    return votes >= 0.5
