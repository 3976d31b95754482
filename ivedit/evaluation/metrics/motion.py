"""What time does to an edit: motion that follows the source, flicker, standing still, blur.

None of them is enough alone, which is why all are printed: a frozen clip has no flicker and no warp error of its own,
shuffled frames keep every frame sharp, blur is invisible to warp error.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ivedit.evaluation.metrics.base import ClipMetric, Reference, frame_chunks, register_metric
from ivedit.evaluation.metrics.flow import SourceFlow, warp_previous

__all__ = ["MOVES_OTHERWISE", "FlickerRatio", "MotionAgreement", "MotionRatio", "SharpnessRatio", "WarpError"]

STILL = 1e-4
"""A clip whose mean absolute frame difference is below this (a fortieth of a grey level) stands still: ratios to its
motion have no value."""

MOVES_OTHERWISE = 0.8
"""An edit whose motion agreement is below this moves otherwise than its source: frozen, shuffled, or as the instruction
asked. Its warp error, which follows the source's flow, then says nothing about its quality, so it is flagged."""

_MOVED = 6 / 255
"""Change of a small neighbourhood's mean colour from one frame to the next that counts as motion, not as noise."""

STILL_PIXEL = 4 / 255
"""A pixel is at rest between two frames when no colour of it changes by more than this."""


def _no_value(like: Tensor) -> Tensor:
    return torch.full((len(like),), torch.nan, device=like.device)


def _steps(clip: Tensor) -> Tensor:
    """(B, T, 3, H, W) -> |frame difference| (B, T - 1, 3, H, W)."""
    return (clip[:, 1:].float() - clip[:, :-1].float()).abs_()


def _motion(clip: Tensor) -> Tensor:
    """(B, T, 3, H, W) -> (B,) mean absolute frame difference."""
    total = sum(_steps(clip[:, part]).sum(dim=(1, 2, 3, 4)).double() for part in frame_chunks(clip, 1))
    assert isinstance(total, Tensor)
    return (total / clip[:, 1:].flatten(1).shape[1]).float()


def _rest(reference: Reference) -> Tensor:
    """(B, T - 1, H, W) bool: pixels that change neither in the source nor in the true edit (`STILL_PIXEL`)."""

    def still(clip: Tensor) -> Tensor:
        return torch.cat(
            [_steps(clip[:, part]).amax(dim=2) <= STILL_PIXEL for part in frame_chunks(clip, 1)], dim=1
        )

    if reference.target is reference.source:
        return still(reference.source)
    return still(reference.source) & still(reference.target)


class WarpError(ClipMetric):
    """Mean absolute difference between each frame and its predecessor moved along the **source's** flow.

    Only pixels that the source shows in both frames count. Lai et al. (arXiv 1808.00449) with two changes: the
    source's flow, so that freezing or shuffling an edit is seen, and absolute in place of squared differences.
    """

    higher_is_better = False

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B,) in [0, 1]; no value for a single frame."""
        if edited.shape[1] < 2:
            return _no_value(edited)
        flow = self.flow(reference)
        total = torch.zeros(len(edited), dtype=torch.float64, device=edited.device)
        for part in frame_chunks(edited, 1):
            clip, steps = edited[:, part].float(), slice(part.start, part.stop - 1)
            error = (clip[:, 1:] - warp_previous(clip, flow.backward[:, steps])).abs_().mean(dim=2, keepdim=True)
            total += (error * flow.visible[:, steps]).sum(dim=(1, 2, 3, 4)).double()
        return (total / flow.visible.sum(dim=(1, 2, 3, 4))).float()

    def flow(self, reference: Reference) -> SourceFlow:
        """The sources' flow that is followed."""
        return reference.flow_of_source()


class FlickerRatio(ClipMetric):
    """Frame difference where everything should rest, relative to the source's frame difference over the frame.

    At rest are pixels that change neither in the source nor in the true edit (`STILL_PIXEL`). 0 is best, and a source
    copy has it up to the source's own noise; so has a frozen clip, which the motion ratio gives away.
    """

    higher_is_better = False

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B,) from 0; no value when the source stands still, for a single frame, or when nothing rests."""
        if edited.shape[1] < 2:
            return _no_value(edited)
        rest = reference.kept("rest", lambda: _rest(reference))
        total = torch.zeros(len(edited), dtype=torch.float64, device=edited.device)
        for part in frame_chunks(edited, 1):
            change = _steps(edited[:, part]).mean(dim=2) * rest[:, part.start : part.stop - 1]
            total += change.sum(dim=(1, 2, 3)).double()
        motion = reference.kept("motion", lambda: _motion(reference.source))
        return torch.where(motion > STILL, (total / rest.sum(dim=(1, 2, 3))).float() / motion, torch.nan)


class MotionRatio(ClipMetric):
    """Mean absolute frame difference of the edit over that of its source: 0 is a frozen clip."""

    higher_is_better = None

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B,) from 0; no value when the source stands still or has one frame."""
        if edited.shape[1] < 2:
            return _no_value(edited)
        motion = reference.kept("motion", lambda: _motion(reference.source))
        return torch.where(motion > STILL, _motion(edited) / motion, torch.nan)


class MotionAgreement(ClipMetric):
    """Whether the edit moves where and when its source does: 1 for a recoloured object, 0 for a frozen clip.

    Cosine similarity of two maps over space and time: the share of pixels that move, in each cell of an 8 x 8 grid,
    between each two frames. A pixel moves when a small neighbourhood's mean colour changes by more than `_MOVED`.
    """

    higher_is_better = True

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B,) in [0, 1]; no value when the source stands still or has one frame."""
        if edited.shape[1] < 2:
            return _no_value(edited)
        source = reference.kept("moving", lambda: _moving(reference.source))
        return torch.where(
            source.sum(dim=1) > 0, F.cosine_similarity(source, _moving(edited), dim=1).clamp(0, 1), torch.nan
        )


def _moving(clip: Tensor) -> Tensor:
    """(B, T, 3, H, W) -> (B, (T - 1) * 64): share of moving pixels in each cell and step."""
    cell = max(1, min(clip.shape[-2:]) // 64)  # a frame of 64 pixels is looked at pixel by pixel, larger ones coarser
    found = []
    for part in frame_chunks(clip, 1):
        frames = clip[:, part].float()
        steps = (frames[:, 1:] - frames[:, :-1]).flatten(0, 1)
        if cell > 1:
            steps = F.avg_pool2d(steps, cell, ceil_mode=True)
        mean = F.avg_pool2d(steps, 3, 1, 1, count_include_pad=False)
        moved = (mean.abs().amax(dim=1, keepdim=True) > _MOVED).float()
        found.append(F.adaptive_avg_pool2d(moved, 8).reshape(len(clip), -1))
    return torch.cat(found, dim=1)


class SharpnessRatio(ClipMetric):
    """Root mean square Sobel gradient of the edit over that of the true edit: below 1 is blur, above 1 is noise.

    Where no true edit is known, over that of the source.
    """

    higher_is_better = None

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B,) from 0; no value when the true edit is flat."""
        true = reference.kept("gradient", lambda: _gradient(reference.target))
        return torch.where(true > STILL, _gradient(edited) / true, torch.nan)


def _gradient(clip: Tensor) -> Tensor:
    """(B, T, 3, H, W) -> (B,) RMS Sobel gradient (per pixel), over the frame without its rim."""
    total = torch.zeros(len(clip), dtype=torch.float64, device=clip.device)
    for part in frame_chunks(clip):
        total += _squared_gradient(clip[:, part].float()).double()
    t, c, h, w = clip.shape[1:]
    return (total / (t * c * (h - 2) * (w - 2))).sqrt().float()


def _squared_gradient(x: Tensor) -> Tensor:
    """(B, T, 3, H, W) -> (B,) sum of squared Sobel gradients, without the rim."""
    if x.device.type == "cpu":
        import cv2

        planes = x.reshape(-1, *x.shape[-2:]).numpy()
        sums = []
        for plane in planes:
            both = (cv2.Sobel(plane, cv2.CV_32F, *order, scale=1 / 8)[1:-1, 1:-1] for order in ((1, 0), (0, 1)))
            sums.append(sum(float(torch.from_numpy(g).square().sum()) for g in both))
        return torch.tensor(sums, dtype=torch.float64).reshape(len(x), -1).sum(dim=1)
    columns = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
    rows = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
    across = (columns[..., 2:] - columns[..., :-2]) / 8
    down = (rows[..., 2:, :] - rows[..., :-2, :]) / 8
    return (across.square_() + down.square_()).sum(dim=(1, 2, 3, 4))


@register_metric(
    "warp_error",
    label="warp error",
    range="0 to 1",
    better="lower",
    digits=4,
    source="mean |e(t+1) - warp(e(t))| along the source's DIS flow, visible pixels (after Lai et al. 2018)",
    meaning="How badly the edit moves otherwise than its source; read it beside the source copy's own.",
)
def _warp_error(evaluation: Any) -> ClipMetric:
    return WarpError()


@register_metric(
    "flicker_ratio",
    label="flicker",
    range="from 0",
    better="lower",
    digits=3,
    source="mean |e(t+1) - e(t)| where source and true edit rest, over the source's mean |s(t+1) - s(t)|",
    meaning="Change from frame to frame where nothing should change; a frozen clip has none.",
)
def _flicker(evaluation: Any) -> ClipMetric:
    return FlickerRatio()


@register_metric(
    "motion_ratio",
    label="motion",
    range="from 0",
    better="near 1",
    digits=2,
    source="mean |e(t+1) - e(t)| over mean |s(t+1) - s(t)|",
    meaning="How much the edit moves beside its source; 0 is a frozen clip. Compare with the VAE ceiling's.",
)
def _motion_ratio(evaluation: Any) -> ClipMetric:
    return MotionRatio()


@register_metric(
    "motion_agreement",
    label="motion agreement",
    range="0 to 1",
    better="higher",
    digits=2,
    source="cosine similarity of the maps of moving pixels of edit and source, 8 x 8 cells a frame",
    meaning="Whether the edit moves where and when its source does; edits below 0.8 are flagged.",
)
def _motion_agreement(evaluation: Any) -> ClipMetric:
    return MotionAgreement()


@register_metric(
    "sharpness_ratio",
    label="sharpness",
    range="from 0",
    better="near 1",
    digits=2,
    source="RMS Sobel gradient over the true edit's (where none is known: the source's)",
    meaning="Below 1: blurred; above 1: noisy or over-sharp.",
)
def _sharpness(evaluation: Any) -> ClipMetric:
    return SharpnessRatio()
