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

from ivedit.evaluation.metrics.base import ClipMetric, Reference, frame_chunks, register_metric

__all__ = [
    "CAP_DB", "SSIM_WINDOW", "EditProgress", "EditSuccess", "FramePSNR", "RegionPSNR", "RegionSSIM", "erode",
    "frame_errors",
]  # fmt: skip

CAP_DB = 60.0
"""PSNR of identical pixels, in dB, where the formula has no finite value. Nothing scores higher. An empty region has
no value at all."""

SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window (sigma 1.5) in pixels."""

_LARGE = 128
"""Frames whose shorter side is above this are blurred and eroded by OpenCV on a CPU, whose cost per pixel does not grow
with the frame; on smaller ones a matrix product over many frames at once is faster."""

Region = Literal["edited", "kept"]


def frame_errors(edited: Tensor, reference: Reference) -> Tensor:
    """(B, T, 2, 2) float64: per frame and region (edited, kept), the sum of squared errors and the number of pixels.

    Squared errors are averaged over colours. All PSNRs of an edit come from these sums.
    """

    def compute() -> Tensor:
        found = []
        for part in frame_chunks(edited):
            error = (edited[:, part].float() - reference.target[:, part].float()).square_().mean(dim=2, keepdim=True)
            inside = reference.mask[:, part]
            regions = torch.cat((inside, ~inside), dim=2)
            found.append(torch.stack(((error * regions).sum(dim=(3, 4)), regions.sum(dim=(3, 4)).float()), dim=-1))
        return torch.cat(found, dim=1).double()  # a frame's sum is fine in float32, a clip's is not

    return reference.shared("frame errors", edited, compute)


def _decibels(sums: Tensor) -> Tensor:
    """(..., 2) sum of squared errors and pixels -> (...) float32 dB, at most `CAP_DB`; NaN for no pixels."""
    return (-10 * torch.log10(sums[..., 0] / sums[..., 1])).clamp(max=CAP_DB).float()


def ssim_map(edited: Tensor, target: Tensor) -> Tensor:
    """SSIM of each pixel's window, averaged over colours (Wang et al., IEEE TIP 2004, K1 = 0.01, K2 = 0.03).

    The same numbers as torchmetrics' ``structural_similarity_index_measure(..., return_full_image=True)``, ten times
    as fast on a CPU: the window is separable, and blurring a small frame along an axis is one matrix product. On a GPU
    in float64, because variances are differences of nearly equal numbers, which TF32 products would spoil.

    Args:
        edited: (B, T, 3, H, W) in [0, 1].
        target: The same shape.

    Returns:
        (B, T, 1, H, W) float32.

    Raises:
        ValueError: frames smaller than half the window, whose edges cannot be mirrored.
    """
    b, t, _, h, w = edited.shape
    if min(h, w) <= SSIM_WINDOW // 2:
        raise ValueError(f"SSIM needs frames larger than {SSIM_WINDOW // 2} pixels, got {h} x {w}")
    dtype = torch.float32 if edited.device.type == "cpu" else torch.float64
    blur = _blur_opencv if edited.device.type == "cpu" and min(h, w) > _LARGE else _blur_product
    c1, c2 = 0.01**2, 0.03**2
    found = torch.empty((b, t, 1, h, w), device=edited.device)
    for part in frame_chunks(edited):
        x, y = edited[:, part].to(dtype), target[:, part].to(dtype)
        mean_x, mean_y = blur(x), blur(y)
        both = mean_x * mean_y
        squares = mean_x.square() + mean_y.square()
        variances = blur(x.square() + y.square()) - squares  # rounding can make it negative, c2 is far larger
        ssim = (2 * both + c1) * (2 * (blur(x * y) - both) + c2) / ((squares + c1) * (variances + c2))
        found[:, part] = ssim.mean(dim=2, keepdim=True).float()
    return found


def _blur_product(planes: Tensor) -> Tensor:
    """SSIM's window over (..., H, W), mirrored at the rim, as two matrix products."""
    h, w = planes.shape[-2:]
    down = _blur_matrix(h).to(planes.device, planes.dtype).T.contiguous()
    return down @ (planes @ _blur_matrix(w).to(planes.device, planes.dtype))


def _blur_opencv(planes: Tensor) -> Tensor:
    """The same for float32 on a CPU, plane by plane."""
    import cv2

    flat = planes.reshape(-1, *planes.shape[-2:]).contiguous().numpy()
    found = torch.empty(flat.shape)
    for plane, out in zip(flat, found.numpy(), strict=True):
        cv2.GaussianBlur(plane, (SSIM_WINDOW, SSIM_WINDOW), 1.5, dst=out, borderType=cv2.BORDER_REFLECT_101)
    return found.reshape(planes.shape)


@cache
def _blur_matrix(size: int) -> Tensor:
    """(size, size) float64: a row vector times it is that row blurred by SSIM's window, mirrored at both ends."""
    half = SSIM_WINDOW // 2
    window = torch.exp(-torch.arange(-half, half + 1, dtype=torch.float64).square() / (2 * 1.5**2))
    rows = F.pad(torch.eye(size, dtype=torch.float64)[None], (half, half), mode="reflect")
    return F.conv1d(rows.transpose(0, 1), (window / window.sum()).view(1, 1, -1)).squeeze(1)


def erode(region: Tensor, window: int) -> Tensor:
    """Pixels of ``region`` (B, T, 1, H, W) whose whole ``window`` x ``window`` neighbourhood belongs to it.

    What lies outside the frame counts as belonging.
    """
    b, t, _, h, w = region.shape
    if region.device.type == "cpu":
        import cv2
        import numpy as np

        square = np.ones((window, window), np.uint8)
        frames = region.reshape(-1, h, w).to(torch.uint8).contiguous().numpy()
        eroded = np.stack([cv2.erode(frame, square) for frame in frames])
        return torch.from_numpy(eroded).reshape(region.shape) > 0
    outside = (~region).reshape(b * t, 1, h, w).float()
    for size in ((1, window), (window, 1)):  # one axis after the other: a square is the product of two lines
        outside = F.max_pool2d(outside, size, stride=1, padding=(size[0] // 2, size[1] // 2))
    return outside.reshape(b, t, 1, h, w) == 0


class RegionPSNR(ClipMetric):
    """PSNR (dB) against the true edit over one region of all frames together.

    Without a true edit the edited region has no value, and the kept region is compared with the source.
    """

    higher_is_better = True

    def __init__(self, region: Region, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.region: Region = region

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B,) dB."""
        return _region_values(edited, reference)[self.region]


def _region_values(edited: Tensor, reference: Reference) -> dict[str, Tensor]:
    """(B,) dB of either region over all frames."""
    both = _decibels(frame_errors(edited, reference).sum(dim=1))
    return {"edited": reference.against_truth(both[:, 0]), "kept": both[:, 1]}


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
        values = reference.shared("ssim", edited, lambda: ssim_map(edited, reference.target))
        if self.region == "kept":
            region = reference.kept("eroded", lambda: erode(reference.region("kept"), SSIM_WINDOW))
        else:
            region = reference.region("edited")
        mean = (values * region).sum(dim=(1, 2, 3, 4)) / region.sum(dim=(1, 2, 3, 4))
        return reference.against_truth(mean) if self.region == "edited" else mean


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
        """(B,) 0 or 1; no value without a true edit."""
        found = _region_values(edited, reference)
        return reference.against_truth(success_of(found["edited"], found["kept"], self.edited_db, self.kept_db))


def success_of(edited: Tensor, kept: Tensor, edited_db: float, kept_db: float) -> Tensor:
    """Edit success (1 or 0) from the two regions' PSNR (dB), as in `EditSuccess`; NaN when neither has a value."""
    good = (edited.isnan() | (edited > edited_db)) & (kept.isnan() | (kept > kept_db))
    return torch.where(edited.isnan() & kept.isnan(), torch.nan, good.float())


class EditProgress(ClipMetric):
    """How far the edit went from the source to the true edit in the edited region: ``1 - MSE / MSE of the source``.

    1 is the true edit, 0 doing nothing, below 0 worse than that. Needs no threshold, so it means the same for a strong
    and for a faint change; success, which asks for decibels, may take a faint one for done before it was begun.
    """

    higher_is_better = True

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B,) at most 1; no value without a true edit that differs from its source."""
        begun, left = (frame_errors(clip, reference)[:, :, 0, 0].sum(dim=1) for clip in (reference.source, edited))
        return reference.against_truth(torch.where(begun > 0, 1 - left / begun, torch.nan).float())


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
        frames = edited.shape[1]
        if (frames - 1) % self.time_factor:
            raise ValueError(f"{frames} frames are not 1 + a multiple of the time factor {self.time_factor}")
        groups = [slice(0, 1), *(slice(s, s + self.time_factor) for s in range(1, frames, self.time_factor))]
        sums = frame_errors(edited, reference)[:, :, ("edited", "kept").index(self.region)]
        values = torch.stack([_decibels(sums[:, group].sum(dim=1)) for group in groups], dim=1)
        return reference.against_truth(values) if self.region == "edited" else values


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
    "edit_progress",
    label="edit progress",
    range="up to 1",
    better="higher",
    digits=2,
    source="1 - MSE to the true edit / MSE of the source to the true edit, over the edited region",
    meaning="How much of the asked change was made: 1 all, 0 nothing, below 0 worse than nothing.",
)
def _edit_progress(evaluation: Any) -> ClipMetric:
    return EditProgress()


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
