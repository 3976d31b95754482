"""Photographs and a real video, edited by program: the metrics hold on something other than sprites."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ivedit.config.schema import EvaluationConfig
from ivedit.evaluation.masks import estimate_mask
from ivedit.evaluation.metrics import Reference, build_metrics
from tests.evaluation.real_media import EDITS, real_clips

CLIPS = real_clips(6)


def as_float(clips) -> torch.Tensor:
    return torch.from_numpy(np.stack(clips)).float() / 255


@pytest.fixture(scope="module")
def reference() -> Reference:
    mask = torch.from_numpy(np.stack([clip.mask for clip in CLIPS]))
    return Reference(as_float([c.source for c in CLIPS]), as_float([c.truth for c in CLIPS]), mask)


def values(edited: torch.Tensor, reference: Reference) -> dict[str, torch.Tensor]:
    metrics = build_metrics(EvaluationConfig())
    for metric in metrics.values():
        metric.update(edited, reference)
    return {name: metric.per_clip()[1] for name, metric in metrics.items()}


def test_the_set_has_every_kind_of_edit_and_changes_nothing_outside_its_masks():
    assert {clip.operation for clip in CLIPS} == set(EDITS)
    for clip in CLIPS:
        changed = (clip.source != clip.truth).any(axis=1, keepdims=True)
        assert changed.any() and not (changed & ~clip.mask).any()


def test_the_true_edit_has_the_best_of_everything_and_a_source_copy_has_done_nothing(reference: Reference):
    true = values(reference.target.clone(), reference)
    for name, best in (("edited_psnr", 60), ("kept_psnr", 60), ("edited_ssim", 1), ("kept_ssim", 1), ("success", 1),
                       ("edit_progress", 1), ("sharpness_ratio", 1)):  # fmt: skip
        assert true[name].tolist() == pytest.approx([best] * 6, abs=1e-3), name
    copy = values(reference.source.clone(), reference)
    assert copy["edit_progress"].tolist() == [0] * 6 and (copy["kept_psnr"] == 60).all()
    assert (copy["edited_psnr"] < 40).all() and copy["motion_ratio"].tolist() == pytest.approx([1] * 6)


def test_faults_show_on_real_motion(reference: Reference):
    true = values(reference.target.clone(), reference)
    frozen = values(reference.target[:, :1].expand_as(reference.target).contiguous(), reference)
    mixed = values(reference.target[:, [4, 0, 6, 2, 8, 1, 5, 3, 7]].contiguous(), reference)
    moving = ~true["motion_agreement"].isnan()
    assert moving.sum() >= 4
    assert (frozen["motion_agreement"][moving] == 0).all()
    assert (mixed["warp_error"] > 2 * true["warp_error"])[moving].all()


def test_the_estimated_mask_of_a_plain_change_of_colour_is_the_true_one():
    for clip in CLIPS:
        if clip.operation == "colour":
            found = estimate_mask(torch.from_numpy(clip.source), torch.from_numpy(clip.truth))
            mask = torch.from_numpy(clip.mask)
            assert float((found & mask).sum() / (found | mask).sum()) > 0.8
