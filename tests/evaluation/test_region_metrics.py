"""Region metrics against closed forms and independent implementations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.image import structural_similarity_index_measure

from ivedit.evaluation.metrics import EditProgress, EditSuccess, FramePSNR, Reference, RegionPSNR, RegionSSIM
from ivedit.evaluation.metrics.region import CAP_DB, erode, ssim_map


def clips(b=2, t=5, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    source = torch.rand(b, t, 3, size, size, generator=generator)
    target = source.clone()
    mask = torch.zeros(b, t, 1, size, size, dtype=torch.bool)
    mask[..., 4:14, 6:16] = True
    target = torch.where(mask, 1 - source, source)
    return Reference(source, target, mask)


def score(metric, edited, reference):
    metric.update(edited, reference)
    return metric.per_clip()[1]


@given(error=st.floats(0.01, 0.5), region=st.sampled_from(["edited", "kept"]))
@settings(max_examples=20, deadline=None)
def test_a_constant_error_gives_the_textbook_psnr_in_its_region_and_the_cap_in_the_other(error, region):
    reference = clips()
    shifted = torch.where(reference.target > 0.5, reference.target - error, reference.target + error)
    edited = torch.where(reference.region(region), shifted, reference.target)
    other = "kept" if region == "edited" else "edited"
    expected = -20 * math.log10(error)
    assert score(RegionPSNR(region), edited, reference).tolist() == pytest.approx([expected] * 2, rel=1e-4)
    assert score(RegionPSNR(other), edited, reference).tolist() == [CAP_DB] * 2


def test_psnr_pools_errors_over_all_frames_before_the_logarithm():
    reference = clips()
    edited = (reference.target + 0.2 * torch.randn(reference.target.shape, generator=torch.manual_seed(3))).clamp(0, 1)
    found = score(RegionPSNR("edited"), edited, reference).numpy()
    for row in range(2):
        inside = reference.mask[row].expand(-1, 3, -1, -1).numpy()
        error = np.square(edited[row].numpy().astype(np.float64) - reference.target[row].numpy())[inside].mean()
        assert found[row] == pytest.approx(-10 * math.log10(error), rel=1e-5)


def test_a_perfect_edit_scores_exactly_the_best_and_a_source_copy_keeps_but_does_not_edit():
    reference = clips()
    for metric, best in ((RegionPSNR, CAP_DB), (RegionSSIM, 1.0)):
        top = pytest.approx([best] * 2)
        for region in ("edited", "kept"):
            assert score(metric(region), reference.target.clone(), reference).tolist() == top
        assert score(metric("kept"), reference.source.clone(), reference).tolist() == top
        assert (score(metric("edited"), reference.source.clone(), reference) < best / 3).all()
    assert score(EditSuccess(), reference.target.clone(), reference).tolist() == [1, 1]
    assert score(EditSuccess(), reference.source.clone(), reference).tolist() == [0, 0]


def test_an_empty_region_has_no_value_and_the_other_region_decides_success():
    reference = clips()
    everything = torch.ones_like(reference.mask)
    everything[1] = False
    reference = Reference(reference.source, reference.target, everything)
    bad = 1 - reference.target
    for metric in (RegionPSNR, RegionSSIM):
        assert score(metric("kept"), reference.target, reference).isnan().tolist() == [True, False]
        assert score(metric("edited"), reference.target, reference).isnan().tolist() == [False, True]
    assert score(EditSuccess(), reference.target, reference).tolist() == [1, 1]
    assert score(EditSuccess(), bad, reference).tolist() == [0, 0]
    kept = RegionPSNR("kept")
    kept.update(reference.target, reference)
    assert kept.compute() == CAP_DB  # the mean is of the clip that has a value


def test_success_needs_both_regions_above_their_thresholds():
    reference = clips(b=1)
    slightly = (reference.target - 0.14).clamp(0, 1)  # about 17 to 18 dB everywhere
    edited_only = torch.where(reference.mask, slightly, reference.target)
    assert score(EditSuccess(16, 20), edited_only, reference).tolist() == [1]
    assert score(EditSuccess(16, 20), slightly, reference).tolist() == [0]
    assert score(EditSuccess(16, 15), slightly, reference).tolist() == [1]
    assert score(EditSuccess(30, 15), slightly, reference).tolist() == [0]


@pytest.mark.parametrize("shape", [(2, 3, 3, 32, 32), (1, 2, 3, 24, 40), (1, 2, 3, 150, 131)])
def test_the_ssim_map_equals_torchmetrics(shape):
    generator = torch.Generator().manual_seed(1)
    left = torch.rand(shape, generator=generator)
    right = (left + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1)
    _, full = structural_similarity_index_measure(
        left.flatten(0, 1), right.flatten(0, 1), data_range=1.0, reduction="none", return_full_image=True
    )
    torch.testing.assert_close(ssim_map(left, right).flatten(0, 1), full.mean(dim=1, keepdim=True), atol=3e-5, rtol=0)


def test_ssim_agrees_with_scikit_image_inside_the_frame():
    from skimage.metrics import structural_similarity

    generator = torch.Generator().manual_seed(1)
    left = torch.rand(1, 1, 3, 40, 40, generator=generator)
    right = (left + 0.1 * torch.randn(left.shape, generator=generator)).clamp(0, 1)
    _, full = structural_similarity(
        left[0, 0].permute(1, 2, 0).double().numpy(), right[0, 0].permute(1, 2, 0).double().numpy(),
        channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, full=True,
    )  # fmt: skip
    ours = ssim_map(left, right)[0, 0, 0, 6:-6, 6:-6].numpy()
    np.testing.assert_allclose(ours, full.mean(axis=2)[6:-6, 6:-6], atol=1e-5)


def test_a_wrong_edit_does_not_lower_ssim_of_the_kept_region():
    reference = clips()
    assert score(RegionSSIM("kept"), torch.where(reference.mask, 0.5, reference.target), reference).tolist() == (
        pytest.approx([1.0, 1.0])
    )


def test_erosion_takes_off_half_a_window():
    region = torch.zeros(1, 1, 1, 20, 20, dtype=torch.bool)
    region[..., 2:18, 2:18] = True
    assert erode(region, 11).nonzero()[:, -2:].min() == 7 and erode(region, 11).sum() == 6 * 6
    assert erode(torch.ones_like(region), 11).all()  # the frame's own rim does not count as outside


def test_psnr_per_frame_and_per_latent_show_where_an_error_is():
    reference = clips(b=1, t=9)
    edited = reference.target.clone()
    edited[:, 5] = 1 - edited[:, 5]
    per_frame = FramePSNR("edited")
    per_frame.update(edited, reference)
    assert (per_frame.compute() < 20).tolist() == [False] * 5 + [True] + [False] * 3
    per_latent = FramePSNR("edited", time_factor=4)
    per_latent.update(edited, reference)
    assert (per_latent.compute() < 30).tolist() == [False, False, True]
    with pytest.raises(ValueError, match="9 frames"):
        FramePSNR("edited", time_factor=3).update(edited, reference)


def test_what_does_not_belong_together_is_refused():
    reference = clips()
    metric = RegionPSNR("edited")
    with pytest.raises(ValueError, match="edited clips are"):
        metric.update(reference.target[:, :3], reference)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        metric.update(reference.target * 255, reference)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        metric.update(reference.target * float("nan"), reference)
    with pytest.raises(ValueError, match="mask"):
        Reference(reference.source, reference.target, reference.mask[:, :1])
    with pytest.raises(ValueError, match="target pixels"):
        Reference(reference.source, reference.target - 1, reference.mask)
    with pytest.raises(ValueError, match="edited or kept"):
        reference.region("other")


def test_without_a_true_edit_the_edited_region_has_no_value_and_the_kept_one_is_the_sources():
    known = clips()
    reference = Reference(known.source, known.source, known.mask, truth=torch.tensor([False, False]))
    for metric in (RegionPSNR("edited"), RegionSSIM("edited"), EditSuccess(), EditProgress(), FramePSNR("edited")):
        assert score(metric, known.target, reference).isnan().all()
    assert score(RegionPSNR("kept"), known.target, reference).tolist() == [CAP_DB] * 2
    some = Reference(known.source, known.target, known.mask, truth=torch.tensor([True, False]))
    assert score(RegionPSNR("edited"), known.target, some).isnan().tolist() == [False, True]
    with pytest.raises(ValueError, match="truth must be"):
        Reference(known.source, known.target, known.mask, truth=torch.tensor([1, 0]))


def test_erosion_on_a_cpu_equals_the_definition():
    region = torch.rand(1, 2, 1, 30, 27, generator=torch.manual_seed(1)) > 0.05
    padded = torch.nn.functional.pad(region.float(), (2, 2, 2, 2), value=1.0)
    windows = padded.unfold(3, 5, 1).unfold(4, 5, 1)
    assert torch.equal(erode(region, 5), (windows == 1).all(dim=-1).all(dim=-1))


@given(share=st.floats(-0.5, -0.01) | st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_edit_progress_is_the_squared_share_of_the_way_whatever_the_rest(share):
    known = clips()
    faint = known.source + 0.2 * (known.target - known.source)  # room to go the other way
    reference = Reference(known.source, faint, known.mask)
    edited = torch.where(known.mask, known.source + share * (faint - known.source), 1 - known.source).clamp(0, 1)
    if share >= 0:
        assert score(EditProgress(), edited, reference).tolist() == pytest.approx([1 - (1 - share) ** 2] * 2, abs=1e-4)
    else:
        assert (score(EditProgress(), edited, reference) < 0).all()


def test_edit_progress_has_no_value_where_there_was_nothing_to_do():
    known = clips()
    nothing = Reference(known.source, known.source, known.mask)
    assert score(EditProgress(), known.target, nothing).isnan().all()
    assert score(EditProgress(), known.source.clone(), clips()).tolist() == [0, 0]
    assert score(EditProgress(), known.target.clone(), clips()).tolist() == [1, 1]
