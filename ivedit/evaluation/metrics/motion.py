"""What time does to an edit: motion that follows the source, flicker, standing still, blur.

None of them is enough alone, which is why all are printed: a frozen clip has no flicker and no warp error of its own,
shuffled frames keep every frame sharp, blur is invisible to warp error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ivedit.evaluation.metrics.base import ClipMetric, Reference, register_metric
from ivedit.evaluation.metrics.flow import warp_previous

__all__ = ["FlickerRatio", "MotionRatio", "SharpnessRatio", "WarpError"]

STILL = 1e-4
"""A clip whose mean absolute frame difference is below this (a fortieth of a grey level) stands still: ratios to its
motion have no value."""

STILL_PIXEL = 4 / 255
"""A pixel is at rest between two frames when no colour of it changes by more than this."""


def _no_value(like: Tensor) -> Tensor:
    return torch.full((len(like),), torch.nan, device=like.device)


def _steps(clip: Tensor) -> Tensor:
    """(B, T, 3, H, W) -> |frame difference| (B, T - 1, 3, H, W)."""
    return (clip[:, 1:].float() - clip[:, :-1].float()).abs()


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
        flow = reference.flow_of_source()
        error = (edited[:, 1:].float() - warp_previous(edited, flow.backward)).abs().mean(dim=2, keepdim=True)
        seen = flow.visible
        return torch.where(seen, error, 0).sum(dim=(1, 2, 3, 4)) / seen.sum(dim=(1, 2, 3, 4))


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
        source = _steps(reference.source)
        rest = (source.amax(dim=2) <= STILL_PIXEL) & (_steps(reference.target).amax(dim=2) <= STILL_PIXEL)
        change = torch.where(rest, _steps(edited).mean(dim=2), 0).sum(dim=(1, 2, 3)) / rest.sum(dim=(1, 2, 3))
        motion = source.mean(dim=(1, 2, 3, 4))
        return torch.where(motion > STILL, change / motion, torch.nan)


class MotionRatio(ClipMetric):
    """Mean absolute frame difference of the edit over that of its source: 0 is a frozen clip."""

    higher_is_better = None

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B,) from 0; no value when the source stands still or has one frame."""
        if edited.shape[1] < 2:
            return _no_value(edited)
        motion = _steps(reference.source).mean(dim=(1, 2, 3, 4))
        return torch.where(motion > STILL, _steps(edited).mean(dim=(1, 2, 3, 4)) / motion, torch.nan)


class SharpnessRatio(ClipMetric):
    """Root mean square Sobel gradient of the edit over that of the true edit: below 1 is blur, above 1 is noise."""

    higher_is_better = None

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B,) from 0; no value when the true edit is flat."""
        true = _gradient(reference.target)
        return torch.where(true > STILL, _gradient(edited) / true, torch.nan)


def _gradient(clip: Tensor) -> Tensor:
    """(B, T, 3, H, W) -> (B,) RMS Sobel gradient (per pixel), over the frame without its rim."""
    x = clip.float()
    columns = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
    rows = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
    across = (columns[..., 2:] - columns[..., :-2]) / 8
    down = (rows[..., 2:, :] - rows[..., :-2, :]) / 8
    return (across.square() + down.square()).flatten(1).mean(dim=1).sqrt()


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
def _motion(evaluation: Any) -> ClipMetric:
    return MotionRatio()


@register_metric(
    "sharpness_ratio",
    label="sharpness",
    range="from 0",
    better="near 1",
    digits=2,
    source="RMS Sobel gradient over the true edit's",
    meaning="Below 1: blurred; above 1: noisy or over-sharp.",
)
def _sharpness(evaluation: Any) -> ClipMetric:
    return SharpnessRatio()
