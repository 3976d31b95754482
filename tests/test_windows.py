"""Letterboxes give every pixel's place back; windows tile a clip, their weights sum to 1, their noise agrees."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ivedit.windows import Letterbox, Window, blend, blend_weights, padded_length, plan_windows, window_noise

FACTOR = 4
lengths = st.integers(0, 60).map(lambda n: 1 + FACTOR * n)


@st.composite
def plans(draw):
    """(clip length, window, overlap), all 1 + 4 n, overlap < window."""
    window = 1 + FACTOR * draw(st.integers(1, 8))
    overlap = 1 + FACTOR * draw(st.integers(0, (window - 1) // FACTOR - 1))
    return draw(lengths), window, overlap


@given(st.integers(1, 200))
def test_a_padded_clip_is_the_next_length_that_the_vae_takes(frames):
    length = padded_length(frames, FACTOR)
    assert frames <= length < frames + FACTOR and length % FACTOR == 1


@given(plans())
def test_windows_cover_the_clip_and_share_the_overlap_at_least(plan):
    frames, window, overlap = plan
    windows = plan_windows(frames, window, overlap, FACTOR)
    assert windows[0].start == 0 and windows[-1].stop == frames
    assert all(w.start % FACTOR == 0 and w.length == min(window, frames) for w in windows)
    for one, two in itertools.pairwise(windows):
        assert one.start < two.start and one.stop - two.start >= overlap


@given(plans())
def test_weights_sum_to_one_at_every_frame(plan):
    frames, window, overlap = plan
    windows = plan_windows(frames, window, overlap, FACTOR)
    total = torch.zeros(frames)
    for place, weight in zip(windows, blend_weights(windows, overlap), strict=True):
        assert (weight > 0).all()
        total[place.start : place.stop] += weight
    assert torch.allclose(total, torch.ones(frames), atol=1e-6)


@given(plans())
def test_windows_of_one_clip_blend_into_that_clip(plan):
    frames, window, overlap = plan
    windows = plan_windows(frames, window, overlap, FACTOR)
    clip = torch.rand(frames, 3, 2, 2, generator=torch.Generator().manual_seed(frames))
    pieces = list(blend(windows, (clip[w.start : w.stop].clone() for w in windows), overlap))
    assert torch.allclose(torch.cat(pieces), clip, atol=1e-6)
    constant = torch.full_like(clip, 0.25)
    blended = torch.cat(list(blend(windows, (constant[w.start : w.stop].clone() for w in windows), overlap)))
    assert torch.allclose(blended, constant, atol=1e-6)


def test_a_cross_fade_moves_steadily_from_one_window_to_the_next():
    windows = plan_windows(29, 17, 5, FACTOR)
    blended = torch.cat(list(blend(windows, (torch.full((17, 3, 1, 1), float(i)) for i in range(2)), 5)))[:, 0, 0, 0]
    assert blended[:12].max() == 0 and blended[17:].min() == 1
    assert torch.allclose(blended[12:17], torch.arange(1, 6) / 6)


@given(plans(), st.integers(0, 2**40))
def test_where_windows_overlap_their_noise_is_the_same(plan, seed):
    frames, window, overlap = plan
    shape = (2, 3, 3)
    windows = plan_windows(frames, window, overlap, FACTOR)[:4]
    drawn = [window_noise(seed, place, FACTOR, shape) for place in windows]
    for one, a in zip(windows, drawn, strict=True):
        assert a.shape == (1, 2, 1 + (one.length - 1) // FACTOR, 3, 3)
        for two, b in zip(windows, drawn, strict=True):
            shift = (two.start - one.start) // FACTOR
            if 0 <= shift < a.shape[2]:
                count = min(a.shape[2] - shift, b.shape[2])
                assert torch.equal(a[:, :, shift : shift + count], b[:, :, :count])


def test_noise_is_standard_normal_and_differs_between_frames_and_seeds():
    noise = window_noise(0, Window(0, 81), FACTOR, (16, 32, 32))
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert not torch.equal(noise[:, :, 0], noise[:, :, 1])
    assert not torch.equal(noise, window_noise(1, Window(0, 81), FACTOR, (16, 32, 32)))


def test_lengths_that_cannot_be_are_refused():
    for arguments in ((18, 17, 5), (33, 16, 5), (33, 17, 4), (33, 17, 17), (33, 17, 21)):
        with pytest.raises(ValueError, match=r"not 1 \+ a multiple of 4|cannot overlap"):
            plan_windows(*arguments, FACTOR)


@given(
    source=st.tuples(st.integers(16, 300), st.integers(16, 300)),
    target=st.sampled_from([(64, 64), (480, 832), (96, 64)]),
)  # fmt: skip
def test_a_letterbox_keeps_aspect_and_gives_the_size_back(source, target):
    box = Letterbox.fit(source, target)
    assert sorted(box.target) == sorted(target)
    assert box.inner[0] == box.target[0] or box.inner[1] == box.target[1]
    scale = min(box.target[0] / source[0], box.target[1] / source[1])
    assert abs(box.inner[0] - source[0] * scale) <= 1 and abs(box.inner[1] - source[1] * scale) <= 1
    frames = torch.rand(1, 3, *source)
    assert box.into(frames).shape == (1, 3, *box.target)
    assert box.back(box.into(frames)).shape == frames.shape


def test_edges_come_back_after_the_borders_are_cut_off():
    frames = torch.zeros(1, 3, 270, 480)
    frames[..., :16, :], frames[..., -16:, :], frames[..., :, :16], frames[..., :, -16:] = 1.0, 0.8, 0.6, 0.4
    box = Letterbox.fit((270, 480), (64, 64))
    back = box.back(box.into(frames))
    assert (back - frames).abs().mean() < 0.03
    for place in ((4, 240), (265, 240), (135, 4), (135, 475)):
        assert abs(back[0, 0, place[0], place[1]] - frames[0, 0, place[0], place[1]]) < 0.1


def test_a_clip_of_the_right_size_is_not_touched_and_that_is_said():
    frames = torch.rand(2, 3, 64, 64)
    box = Letterbox.fit((64, 64), (64, 64))
    assert torch.equal(box.back(box.into(frames)), frames) and str(box) == "kept its size, 64x64 (height x width)"
    told = str(Letterbox.fit((270, 480), (64, 96)))
    assert told == "resized 270x480 -> 54x96 (height x width), borders to 64x96, and back"


def test_portraits_are_drawn_upright():
    assert Letterbox.fit((1920, 1080), (480, 832)).target == (832, 480)
