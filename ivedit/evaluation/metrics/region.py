"""Fidelity to the true edit, apart for the region that was to change and the region that was to stay.

One number over the whole frame hides both faults: a source copy scores high where nothing was to change, and an edit
that ruins the background is forgiven when the object is small.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ivedit.evaluation.metrics.base import ClipMetric, Reference, register_metric

__all__ = ["CAP_DB", "SSIM_WINDOW", "EditSuccess", "FramePSNR", "RegionPSNR", "RegionSSIM", "region_psnr"]

CAP_DB = 60.0
"""PSNR of identical pixels, in dB, where the formula has no finite value. Nothing scores higher. An empty region has
no value at all."""

SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window (sigma 1.5) in pixels."""

_SSIM_PIXELS = 1 << 20
"""Pixels per chunk of SSIM: bounds the memory."""

Region = Literal["edited", "kept"]


def region_psnr(edited: Tensor, target: Tensor, region: Tensor, dims: tuple[int, ...]) -> Tensor:
    """``10 log10(1 / MSE)`` over the pixels of ``region``, at most `CAP_DB`; NaN where the region is empty.

    Args:
        edited: (B, T, 3, H, W) in [0, 1].
        target: The same shape.
        region: (B, T, 1, H, W) bool.
        dims: Dimensions that are pooled before the logarithm.
    """
    squared = (edited.float() - target.float()).square().mean(dim=2, keepdim=True)
    count = region.sum(dim=dims)
    error = torch.where(region, squared, 0).sum(dim=dims) / count  # 0 / 0 is NaN: no value
    return (-10 * torch.log10(error)).clamp(max=CAP_DB)


def ssim_map(edited: Tensor, target: Tensor) -> Tensor:
    """SSIM of each pixel's window, averaged over colours (Wang et al., IEEE TIP 2004, K1 = 0.01, K2 = 0.03).

    The same numbers as torchmetrics' ``structural_similarity_index_measure(..., return_full_image=True)``, ten times
    as fast on a CPU: the window is separable, and blurring along an axis is one matrix product. On a GPU in float64,
    because variances are differences of nearly equal numbers, which TF32 products would spoil.

    Args:
        edited: (B, T, 3, H, W) in [0, 1].
        target: The same shape.

    Returns:
        (B, T, 1, H, W) float32.

    Raises:
        ValueError: frames smaller than half the window, whose edges cannot be mirrored.
    """
    b, t, c, h, w = edited.shape
    if min(h, w) <= SSIM_WINDOW // 2:
        raise ValueError(f"SSIM needs frames larger than {SSIM_WINDOW // 2} pixels, got {h} x {w}")
    dtype = torch.float32 if edited.device.type == "cpu" else torch.float64
    across = _blur_matrix(w).to(edited.device, dtype)
    down = _blur_matrix(h).to(edited.device, dtype).T.contiguous()

    def blur(planes: Tensor) -> Tensor:
        return down @ (planes @ across)

    c1, c2 = 0.01**2, 0.03**2
    chunk = max(1, _SSIM_PIXELS // (h * w))
    maps = []
    frames = (edited.reshape(-1, c, h, w).split(chunk), target.reshape(-1, c, h, w).split(chunk))
    for left, right in zip(*frames, strict=True):
        x, y = left.to(dtype), right.to(dtype)
        mean_x, mean_y = blur(x), blur(y)
        both = mean_x * mean_y
        squares = mean_x.square() + mean_y.square()
        variances = blur(x.square() + y.square()) - squares  # rounding can make it negative, c2 is far larger
        ssim = (2 * both + c1) * (2 * (blur(x * y) - both) + c2) / ((squares + c1) * (variances + c2))
        maps.append(ssim.mean(dim=1, keepdim=True).float())
    return torch.cat(maps).reshape(b, t, 1, h, w)


@cache
def _blur_matrix(size: int) -> Tensor:
    """(size, size) float64: a row vector times it is that row blurred by SSIM's window, mirrored at both ends."""
    half = SSIM_WINDOW // 2
    window = torch.exp(-torch.arange(-half, half + 1, dtype=torch.float64).square() / (2 * 1.5**2))
    rows = F.pad(torch.eye(size, dtype=torch.float64)[None], (half, half), mode="reflect")
    return F.conv1d(rows.transpose(0, 1), (window / window.sum()).view(1, 1, -1)).squeeze(1)


def erode(region: Tensor, window: int) -> Tensor:
    """Pixels of ``region`` (B, T, 1, H, W) whose whole ``window`` x ``window`` neighbourhood belongs to it."""
    b, t, _, h, w = region.shape
    outside = (~region).reshape(b * t, 1, h, w).float()
    for size in ((1, window), (window, 1)):  # one axis after the other: a square is the product of two lines
        outside = F.max_pool2d(outside, size, stride=1, padding=(size[0] // 2, size[1] // 2))
    return outside.reshape(b, t, 1, h, w) == 0


class RegionPSNR(ClipMetric):
    """PSNR (dB) against the true edit over one region of all frames together."""

    higher_is_better = True

    def __init__(self, region: Region, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.region: Region = region

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B,) dB."""
        return region_psnr(edited, reference.target, reference.region(self.region), (1, 2, 3, 4))


class RegionSSIM(ClipMetric):
    """SSIM against the true edit, averaged over one region of all frames.

    The kept region is first eroded by the window, so that no window of it sees an edited pixel: otherwise the edit
    itself, right or wrong, would count as damage to what was to stay. A kept region that is thinner than the window
    has no value.
    """

    higher_is_better = True

    def __init__(self, region: Region, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.region: Region = region

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B,) in [-1, 1]."""
        values = reference.shared("ssim", edited, ssim_map)
        region = reference.region(self.region)
        if self.region == "kept":
            region = erode(region, SSIM_WINDOW)
        return torch.where(region, values, 0).sum(dim=(1, 2, 3, 4)) / region.sum(dim=(1, 2, 3, 4))


class EditSuccess(ClipMetric):
    """1 when the edited region is above ``edited_db`` and the kept region above ``kept_db``, over all frames.

    An empty region has no PSNR; then the region that exists decides alone (a new background behind no object, a grey
    scale: everything is edited). Never is an empty region taken for a perfect one.
    """

    higher_is_better = True

    def __init__(self, edited_db: float = 16.0, kept_db: float = 20.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.edited_db, self.kept_db = edited_db, kept_db

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B,) 0 or 1."""
        return success_of(
            region_psnr(edited, reference.target, reference.region("edited"), (1, 2, 3, 4)),
            region_psnr(edited, reference.target, reference.region("kept"), (1, 2, 3, 4)),
            self.edited_db,
            self.kept_db,
        )


def success_of(edited: Tensor, kept: Tensor, edited_db: float, kept_db: float) -> Tensor:
    """Edit success (1 or 0) from the two regions' PSNR (dB), as in `EditSuccess`; NaN when neither has a value."""
    good = (edited.isnan() | (edited > edited_db)) & (kept.isnan() | (kept > kept_db))
    return torch.where(edited.isnan() & kept.isnan(), torch.nan, good.float())


class FramePSNR(ClipMetric):
    """Edited-region PSNR (dB) for each frame index, or for each latent index.

    Latent frame 0 stands for pixel frame 0, latent frame f for the ``time_factor`` pixel frames up to
    ``f * time_factor``: errors that grow along either axis are a video's, which image pairs could not teach.
    """

    higher_is_better = True

    def __init__(self, region: Region = "edited", time_factor: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.region: Region = region
        self.time_factor = time_factor

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B, K): K = T frames for a time factor of 1, else 1 + (T - 1) / time_factor latents."""
        region = reference.region(self.region)
        frames = edited.shape[1]
        if (frames - 1) % self.time_factor:
            raise ValueError(f"{frames} frames are not 1 + a multiple of the time factor {self.time_factor}")
        groups = [slice(0, 1), *(slice(s, s + self.time_factor) for s in range(1, frames, self.time_factor))]
        return torch.stack(
            [region_psnr(edited[:, g], reference.target[:, g], region[:, g], (1, 2, 3, 4)) for g in groups], dim=1
        )


_PSNR = "10 log10(1 / MSE) over the region's pixels of all frames (torch); 60 dB: identical pixels"
_SSIM = "Wang et al. 2004, Gaussian window 11, sigma 1.5; equals torchmetrics"


@register_metric(
    "edited_psnr",
    label="edited PSNR",
    range="0 to 60 dB",
    better="higher",
    source=_PSNR,
    digits=1,
    meaning="How close the region that the true edit changes is to the true edit.",
)
def _edited_psnr(evaluation: Any) -> ClipMetric:
    return RegionPSNR("edited")


@register_metric(
    "kept_psnr",
    label="kept PSNR",
    range="0 to 60 dB",
    better="higher",
    source=_PSNR,
    digits=1,
    meaning="How well the region that the true edit leaves alone was left alone.",
)
def _kept_psnr(evaluation: Any) -> ClipMetric:
    return RegionPSNR("kept")


@register_metric(
    "edited_ssim",
    label="edited SSIM",
    range="-1 to 1",
    better="higher",
    source=_SSIM,
    digits=3,
    meaning="Structure of the edited region against the true edit.",
)
def _edited_ssim(evaluation: Any) -> ClipMetric:
    return RegionSSIM("edited")


@register_metric(
    "kept_ssim",
    label="kept SSIM",
    range="-1 to 1",
    better="higher",
    digits=3,
    source=_SSIM + "; region eroded by the window",
    meaning="Structure of the kept region against the true edit.",
)
def _kept_ssim(evaluation: Any) -> ClipMetric:
    return RegionSSIM("kept")


@register_metric(
    "success",
    label="success",
    range="0 or 1 a clip",
    better="higher",
    digits=2,
    source="edited PSNR above evaluation.edited_db (16) and kept PSNR above evaluation.kept_db (20)",
    meaning="Share of clips whose edit is right and whose rest is intact; an empty region does not vote.",
)
def _success(evaluation: Any) -> ClipMetric:
    return EditSuccess(evaluation.edited_db, evaluation.kept_db)
