"""Real media for anchors: clips that pan over photographs which ship inside scikit-image, an ellipse as the object."""

from __future__ import annotations

import numpy as np

from ivedit.judge.anchor_scenes import MaskedClip

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def panned(photograph: str, number: int, frames: int = 9, size: tuple[int, int] = (64, 96)) -> MaskedClip:
    """A window that moves over half a photograph, and the mask of an ellipse that stays in the photograph's place."""
    import skimage.data

    whole = getattr(skimage.data, photograph)()[::2, ::2]  # (H, W, 3) uint8
    height, width = size
    rng = np.random.default_rng(number)
    top = int(rng.integers(0, whole.shape[0] - height))
    step = int(rng.integers(3, 6)) * (1 if number % 2 else -1)
    first = int(rng.integers(frames * 5, whole.shape[1] - width - frames * 5))
    lefts = [first + step * t for t in range(frames)]
    y, x = np.mgrid[: whole.shape[0], : whole.shape[1]]
    inside = ((y - top - height / 2) / (height / 4)) ** 2 + ((x - first - width / 2) / (width / 5)) ** 2 <= 1
    source = np.stack([whole[top : top + height, left : left + width].transpose(2, 0, 1) for left in lefts])
    mask = np.stack([inside[None, top : top + height, left : left + width] for left in lefts])
    return MaskedClip(f"{photograph}-{number}", source, mask, object="the oval in the middle")


def panned_clips(count: int) -> list[MaskedClip]:
    """``count`` clips from the photographs in turn."""
    return [panned(PHOTOGRAPHS[i % len(PHOTOGRAPHS)], i) for i in range(count)]
