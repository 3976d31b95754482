"""Optical flow of source clips, by OpenCV's DIS (Kroeger et al., arXiv 1603.03590), with a visibility mask.

The flow is the *source's*: an edit should move as its source does. The flow of an edit itself would call a frozen
clip perfect. OpenCV works on CPU threads and lets go of the interpreter lock, so `start_source_flow` runs beside a
GPU that samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PendingFlow", "SourceFlow", "source_flow", "start_source_flow", "visible_pixels", "warp_previous"]

_SMALL = 128
"""Frames whose shorter side is below this are doubled first, and DIS runs down to full resolution: with its stock
settings it loses objects of a dozen pixels (in a 64 x 64 clip, the error of the flow inside a moving disc falls from
the whole displacement to a fraction of it)."""

_LARGE = 320
"""Frames whose shorter side is above this are halved: a quarter of the time for a few hundredths of a pixel."""


@dataclass(frozen=True)
class SourceFlow:
    """Where each pixel of frame t + 1 was in frame t.

    Attributes:
        backward: (B, T - 1, 2, H, W) float32, (dx, dy) in pixels from frame t + 1 to frame t.
        visible: (B, T - 1, 1, H, W) bool; False where the pixel was hidden or outside in frame t.
    """

    backward: Tensor
    visible: Tensor

    def to(self, device: torch.device | str) -> SourceFlow:
        """The same on ``device``."""
        return SourceFlow(self.backward.to(device), self.visible.to(device))


class PendingFlow:
    """Flow under way in the background, one task per clip."""

    def __init__(self, tasks: list[Future[tuple[np.ndarray, np.ndarray]]]) -> None:
        self._tasks = tasks

    def result(self) -> SourceFlow:
        """Wait for it."""
        clips = [task.result() for task in self._tasks]
        return SourceFlow(
            torch.from_numpy(np.stack([backward for backward, _ in clips])),
            torch.from_numpy(np.stack([visible for _, visible in clips])),
        )


def start_source_flow(pixels: Tensor) -> PendingFlow:
    """`source_flow`, in the background: returns at once."""
    if pixels.ndim != 5 or pixels.shape[2] != 3 or not len(pixels):
        raise ValueError(f"clips must be (B, T, 3, H, W) with B >= 1, got {tuple(pixels.shape)}")
    # ITU-R BT.601 luma, what OpenCV's RGB2GRAY computes
    red, green, blue = pixels.unbind(dim=2)
    luma = (0.299 * red.float()).add_(green.float(), alpha=0.587).add_(blue.float(), alpha=0.114)
    grey = luma.clamp_(0, 1).mul_(255).round_().to(torch.uint8).cpu().numpy()
    return PendingFlow([_pool().submit(_clip_flow, clip) for clip in grey])


def source_flow(pixels: Tensor) -> SourceFlow:
    """Flow of a batch of clips (B, T, 3, H, W) in [0, 1], on the CPU; one frame gives empty tensors."""
    return start_source_flow(pixels).result()


@cache
def _pool() -> ThreadPoolExecutor:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(min(16, available), thread_name_prefix="flow", initializer=_one_thread_each)


def _one_thread_each() -> None:
    """Clips are what is parallel: threads of OpenCV's own inside each of them would only get in one another's way."""
    import cv2

    cv2.setNumThreads(1)


def _clip_flow(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T, H, W) uint8 -> backward flow (T-1, 2, H, W) float32 and visibility (T-1, 1, H, W) bool."""
    import cv2

    frames, height, width = grey.shape
    backward = np.zeros((frames - 1, 2, height, width), np.float32)
    visible = np.ones((frames - 1, 1, height, width), bool)
    halved = min(height, width) > _LARGE
    if halved:
        half = (width // 2, height // 2)
        grey = np.stack([cv2.resize(frame, half, interpolation=cv2.INTER_AREA) for frame in grey])
    for t, (back, forth) in enumerate(_pair_flows(grey)):
        seen = visible_pixels(back, forth)
        if halved:
            back = cv2.resize(back, (width, height)) * np.array([width / half[0], height / half[1]], np.float32)
            seen = cv2.resize(seen.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
        backward[t, 0], backward[t, 1] = back[..., 0], back[..., 1]
        visible[t, 0] = seen
    return backward, visible


def _pair_flows(grey: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(backward, forward) flow (H, W, 2) float32 of each pair of neighbouring frames."""
    import cv2

    small = min(grey.shape[1:]) < _SMALL
    scale = 2 if small else 1
    dis: Any = cv2.DISOpticalFlow_create(  # type: ignore[attr-defined]
        cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST if small else cv2.DISOPTICAL_FLOW_PRESET_MEDIUM
    )
    if small:
        dis.setFinestScale(0)
    size = (grey.shape[2], grey.shape[1])
    frames = [cv2.resize(f, (size[0] * scale, size[1] * scale)) if small else f for f in grey]
    for first, second in pairwise(frames):
        both = []
        for start, end in ((second, first), (first, second)):
            flow = dis.calc(start, end, None)
            if small:
                flow = cv2.resize(flow, size, interpolation=cv2.INTER_AREA) / scale
            both.append(np.asarray(flow, np.float32))
        yield both[0], both[1]


def visible_pixels(back: np.ndarray, forth: np.ndarray) -> np.ndarray:
    """(H, W) bool: the forward flow undoes the backward flow, both (H, W, 2), and the pixel comes from in the frame.

    ``|b + f(x + b)|^2 <= 0.01 (|b|^2 + |f|^2) + 0.5`` (Sundaram et al., ECCV 2010; used by Lai et al.,
    arXiv 1808.00449, for their warping error).
    """
    import cv2

    height, width = back.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    from_x, from_y = x + back[..., 0], y + back[..., 1]
    undone = cv2.remap(forth, from_x, from_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    error = np.square(back + undone).sum(-1)
    allowed = 0.01 * (np.square(back).sum(-1) + np.square(undone).sum(-1)) + 0.5
    inside = (from_x >= -0.5) & (from_x <= width - 0.5) & (from_y >= -0.5) & (from_y <= height - 0.5)
    return (error <= allowed) & inside


def warp_previous(clip: Tensor, backward: Tensor) -> Tensor:
    """Each frame but the last, moved to where ``backward`` says it stands one frame later.

    Args:
        clip: (B, T, 3, H, W).
        backward: (B, T - 1, 2, H, W) as in `SourceFlow`.

    Returns:
        (B, T - 1, 3, H, W), bilinear, edges repeated.
    """
    b, t, c, h, w = clip.shape
    y, x = torch.meshgrid(
        torch.arange(h, device=clip.device, dtype=torch.float32),
        torch.arange(w, device=clip.device, dtype=torch.float32),
        indexing="ij",
    )
    flow = backward.to(clip.device).reshape(b * (t - 1), 2, h, w)
    grid = torch.stack(((x + flow[:, 0]) * (2 / max(w - 1, 1)) - 1, (y + flow[:, 1]) * (2 / max(h - 1, 1)) - 1), dim=-1)
    previous = clip[:, :-1].reshape(b * (t - 1), c, h, w).float()
    moved = F.grid_sample(previous, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return moved.reshape(b, t - 1, c, h, w)
