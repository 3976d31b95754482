"""Motion metrics see what they are for: frozen, shuffled, flickering and blurred edits."""

import pytest
import torch
import torch.nn.functional as F

from ivedit.evaluation.clips import held_out_clips
from ivedit.evaluation.metrics import (
    MOVES_OTHERWISE,
    FlickerRatio,
    MotionAgreement,
    MotionRatio,
    Reference,
    SharpnessRatio,
    WarpError,
    source_flow,
    start_source_flow,
)
from ivedit.evaluation.metrics.flow import warp_previous


@pytest.fixture(scope="module")
def reference():
    """Recoloured, reshaped, resized sprites: edits that move as their sources do."""
    clips = held_out_clips("test", 24, operations=["recolour", "reshape", "resize"])
    whole = next(clips.batches(24)).reference
    moving = (whole.source[:, 1:] - whole.source[:, :-1]).abs().mean(dim=(1, 2, 3, 4)) > 0.005
    return Reference(whole.source[moving], whole.target[moving], whole.mask[moving])


def value(metric, edited, reference):
    metric.update(edited, reference)
    return metric.per_clip()[1]


def frozen(clip):
    return clip[:, :1].expand_as(clip).contiguous()


def shuffled(clip):
    return clip[:, torch.randperm(clip.shape[1], generator=torch.Generator().manual_seed(0))]


def moving_disc(shift, frames=5, size=64):
    y, x = torch.meshgrid(torch.arange(size).float(), torch.arange(size).float(), indexing="ij")
    texture = 0.5 + 0.2 * torch.sin(x / 3) * torch.cos(y / 4)
    clip = []
    for t in range(frames):
        inside = (9.5 - ((x - 24 - shift[0] * t) ** 2 + (y - 28 - shift[1] * t) ** 2).sqrt()).clamp(0, 1)
        clip.append(texture * (1 - inside) + inside)
    return torch.stack(clip)[None, :, None].expand(-1, -1, 3, -1, -1).contiguous()


@pytest.mark.parametrize("shift", [(2, 1), (-1, 2), (0, 0)])
def test_flow_of_a_moving_disc_is_its_motion_and_the_uncovered_background_is_not_visible(shift):
    clip = moving_disc(shift)
    flow = source_flow(clip)
    assert flow.backward.shape == (1, 4, 2, 64, 64) and flow.visible.shape == (1, 4, 1, 64, 64)
    disc = clip[0, 1, 0] > 0.99
    inside = flow.backward[0, 0][:, disc]
    assert inside.median(dim=1).values.tolist() == pytest.approx([-shift[0], -shift[1]], abs=0.15)
    assert flow.backward[0, 0][:, :, 50:].abs().max() < 0.5  # far from the disc
    warped = (warp_previous(clip, flow.backward) - clip[:, 1:]).abs().mean()
    assert warped < 0.004
    if shift != (0, 0):
        assert warped < 0.5 * (clip[:, 1:] - clip[:, :-1]).abs().mean()
        assert not flow.visible[0, 0, 0, 15:42, 10:45].all()
    assert flow.visible[0, 0, 0, :, 52:].all()


def test_the_background_flow_equals_the_waited_for_flow_and_one_frame_has_none():
    clip = moving_disc((1, 1))
    assert torch.equal(start_source_flow(clip).result().backward, source_flow(clip).backward)
    assert source_flow(clip[:, :1]).backward.shape == (1, 0, 2, 64, 64)
    pending = Reference(clip, clip, torch.zeros(1, 5, 1, 64, 64), flow=start_source_flow(clip))
    assert torch.equal(pending.flow_of_source().visible, source_flow(clip).visible)


def test_warping_by_a_whole_pixel_shifts_exactly():
    clip = torch.rand(1, 2, 3, 8, 8)
    backward = torch.zeros(1, 1, 2, 8, 8)
    backward[:, :, 0] = -1  # came from the left
    moved = warp_previous(clip, backward)
    torch.testing.assert_close(moved[..., 1:], clip[:, :1, :, :, :-1])
    torch.testing.assert_close(moved[..., 0], clip[:, :1, :, :, 0])


def test_source_flow_catches_frozen_and_shuffled_edits(reference):
    true = value(WarpError(), reference.target, reference)
    assert true.mean() < 0.6 * value(WarpError(), frozen(reference.target), reference).mean()
    assert true.mean() < 0.5 * value(WarpError(), shuffled(reference.target), reference).mean()
    assert (value(WarpError(), frozen(reference.target), reference) > true).float().mean() > 0.8


def test_motion_is_0_when_frozen_and_1_for_the_source(reference):
    assert value(MotionRatio(), frozen(reference.target), reference).abs().max() == 0
    assert torch.equal(value(MotionRatio(), reference.source, reference), torch.ones(len(reference.source)))


def test_flicker_is_0_for_the_true_edit_and_grows_with_flicker(reference):
    assert value(FlickerRatio(), reference.target, reference).abs().max() < 0.02
    sign = torch.tensor([1.0, -1.0] * 9)[:17].view(1, 17, 1, 1, 1)
    for size in (0.01, 0.03):
        flickering = (reference.target + size * sign).clamp(0, 1)
        found = value(FlickerRatio(), flickering, reference)
        motion = (reference.source[:, 1:] - reference.source[:, :-1]).abs().mean(dim=(1, 2, 3, 4))
        assert (found > 0.5 * 2 * size / motion).all()


def test_blur_is_below_1_noise_above_and_the_true_edit_exactly_1(reference):
    b, t = reference.target.shape[:2]
    padded = F.pad(reference.target.flatten(0, 1), (2, 2, 2, 2), mode="replicate")
    blurred = F.avg_pool2d(padded, 5, 1).unflatten(0, (b, t))
    noise = torch.randn(reference.target.shape, generator=torch.Generator().manual_seed(0))
    noisy = (reference.target + 0.2 * noise).clamp(0, 1)
    assert torch.equal(value(SharpnessRatio(), reference.target, reference), torch.ones(b))
    assert (value(SharpnessRatio(), blurred, reference) < 0.9).all()
    assert (value(SharpnessRatio(), noisy, reference) > 1).all()


def test_what_cannot_be_measured_has_no_value(reference):
    still = frozen(reference.source)
    standing = Reference(still, still, torch.zeros_like(reference.mask))
    for metric in (MotionRatio, FlickerRatio, MotionAgreement):
        assert value(metric(), reference.target, standing).isnan().all()
    one = Reference(reference.source[:, :1], reference.target[:, :1], reference.mask[:, :1])
    for metric in (WarpError, MotionRatio, FlickerRatio, MotionAgreement):
        assert value(metric(), one.target, one).isnan().all()
    flat = torch.full_like(reference.source, 0.5)
    assert value(SharpnessRatio(), reference.target, Reference(flat, flat, reference.mask)).isnan().all()


def test_sharpness_of_a_ramp_is_its_slope():
    ramp = torch.linspace(0, 1, 33).expand(1, 1, 3, 33, 33)
    half = ramp / 2
    reference = Reference(ramp, ramp, torch.zeros(1, 1, 1, 33, 33))
    assert value(SharpnessRatio(), half, reference).item() == pytest.approx(0.5, rel=1e-5)


def test_agreement_is_1_for_new_colours_0_when_frozen_and_between_when_out_of_order():
    whole = next(held_out_clips("test", 12, operations=["recolour", "background_colour"]).batches(12)).reference
    kept = value(MotionAgreement(), whole.target, whole)
    moving = ~kept.isnan()
    assert (kept[moving] > 0.95).all()
    assert value(MotionAgreement(), whole.source, whole)[moving].tolist() == pytest.approx([1] * int(moving.sum()))
    assert (value(MotionAgreement(), frozen(whole.target), whole)[moving] == 0).all()
    mixed = value(MotionAgreement(), shuffled(whole.target), whole)[moving]
    assert (mixed < kept[moving]).all()
    assert (value(MotionAgreement(), whole.target.flip(1), whole)[moving] < MOVES_OTHERWISE).float().mean() > 0.7


def test_agreement_of_two_squares_is_the_cosine_of_where_they_move():
    source, edited = torch.zeros(1, 3, 3, 64, 64), torch.zeros(1, 3, 3, 64, 64)
    source[:, 1, :, 8:24, 8:24] = 1  # appears and vanishes: moves in both steps, alone in its cells
    edited[:, 1, :, 8:24, 8:24] = 1
    edited[:, 1, :, 40:56, 40:56] = 1  # as large again, elsewhere
    reference = Reference(source, source, torch.zeros(1, 3, 1, 64, 64))
    assert value(MotionAgreement(), edited, reference).item() == pytest.approx(0.5**0.5, abs=1e-6)


def test_large_frames_are_measured_as_small_ones_are_whatever_the_chunks(monkeypatch):
    from ivedit.evaluation.metrics import base

    torch.manual_seed(0)
    clip = F.interpolate(torch.rand(6, 3, 30, 40), (360, 480), mode="bilinear")[None]
    edited = (clip + 0.1 * torch.rand_like(clip)).clamp(0, 1)
    metrics = (WarpError, MotionRatio, FlickerRatio, SharpnessRatio, MotionAgreement)
    found = []
    for pixels in (1 << 21, 1):
        monkeypatch.setattr(base, "_CHUNK_PIXELS", pixels)
        reference = Reference(clip, clip, torch.zeros(1, 6, 1, 360, 480))
        found.append(torch.cat([value(metric(), edited, reference) for metric in metrics]))
    torch.testing.assert_close(*found, equal_nan=True)


def test_the_flow_of_a_large_frame_is_halved_and_still_its_motion():
    torch.manual_seed(0)
    ground = F.interpolate(torch.rand(1, 3, 40, 60), (420, 620), mode="bicubic").clamp(0, 1)
    clip = torch.stack([ground[..., 3 * t : 400 + 3 * t, 5 * t : 600 + 5 * t] for t in range(3)], dim=1)
    flow = source_flow(clip)
    assert flow.backward.shape == (1, 2, 2, 400, 600) and flow.visible.shape == (1, 2, 1, 400, 600)
    inner = flow.backward[..., 40:-40, 40:-40]
    assert inner[:, :, 0].mean().item() == pytest.approx(5, abs=0.1)
    assert inner[:, :, 1].mean().item() == pytest.approx(3, abs=0.1)
    assert flow.visible[..., 40:-40, 40:-40].float().mean() > 0.95
    reference = Reference(clip, clip, torch.zeros(1, 3, 1, 400, 600))
    assert value(WarpError(), clip, reference).item() < 0.02
    assert value(WarpError(), clip[:, [2, 0, 1]].contiguous(), reference).item() > 0.05
