"""Every anchor has the fault that its name says, and no other; scenes that cannot show a fault are left out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivedit.errors import ConfigError, IveditError
from ivedit.judge.anchor_clips import KINDS, LEAST_CHANGE, AnchorScene, anchor_clip, anchor_strip, changed_share
from ivedit.judge.anchor_scenes import MaskedClip, MaskedScenes, sprite_scenes
from ivedit.sprites import parse_instruction
from tests.judge.moving_photographs import panned, panned_clips

SPRITES = sprite_scenes(44)
PHOTOGRAPHS = MaskedScenes(panned_clips(8))
ALL = [*SPRITES, *PHOTOGRAPHS]

numbers = st.integers(0, len(ALL) - 1)
quick = settings(max_examples=40, deadline=None)


def made(scene: AnchorScene, kind: str, others: list[AnchorScene]) -> np.ndarray:
    clip = anchor_clip(scene, kind, others)
    assert clip is not None
    return clip


def operations(scene: AnchorScene) -> str:
    """The operation of a sprite's instruction; nothing for a photograph's."""
    return parse_instruction(scene.instruction)["operation"] if scene.name.startswith("sprites") else ""


@quick
@given(numbers)
def test_every_kind_is_a_clip_like_its_source_and_differs_visibly_from_the_true_edit(number):
    scene, others = ALL[number], SPRITES if number < len(SPRITES) else ALL[len(SPRITES) :]
    for kind in KINDS:
        clip = made(scene, kind, others)
        assert clip.shape == scene.source.shape and clip.dtype == np.uint8
        assert (made(scene, kind, others) == clip).all()  # a pure function
        assert kind == "A1" or changed_share(clip, scene.truth) >= LEAST_CHANGE


@quick
@given(numbers)
def test_the_true_edit_changes_nothing_outside_its_mask_and_a_leak_changes_that_alone(number):
    scene, others = ALL[number], SPRITES if number < len(SPRITES) else ALL[len(SPRITES) :]
    assert (made(scene, "A0", others) == scene.source).all() and (made(scene, "A1", others) == scene.truth).all()
    outside = ~np.broadcast_to(scene.mask, scene.truth.shape)
    assert (scene.truth == scene.source)[outside].all()
    leak = made(scene, "A3", others)
    gap = np.abs(leak.astype(int) - scene.source)[outside].mean()
    assert gap > 8
    if "remove" not in operations(scene):
        assert (leak == scene.truth)[~outside].all()


@quick
@given(numbers)
def test_faults_of_time_keep_every_picture_and_faults_of_the_picture_keep_the_time(number):
    scene, others = ALL[number], SPRITES if number < len(SPRITES) else ALL[len(SPRITES) :]
    frames = [frame.tobytes() for frame in scene.truth]
    out_of_order = [frame.tobytes() for frame in made(scene, "A5", others)]
    assert sorted(out_of_order) == sorted(frames) and out_of_order != frames
    if scene.index % 2:
        assert out_of_order == frames[::-1]
    else:
        order = [frames.index(frame) for frame in out_of_order]
        assert all(abs(a - b) > 1 for a, b in pairwise(order))
    frozen = made(scene, "A6", others)
    assert (frozen == scene.truth[:1]).all()
    blurred = made(scene, "A7", others).astype(float)
    steps = [np.abs(np.diff(clip, axis=-1)).max() for clip in (blurred, scene.truth.astype(float))]
    assert steps[0] < 0.6 * steps[1]
    light = made(scene, "A4", others).astype(float).mean(axis=(1, 2, 3)) - scene.truth.mean(axis=(1, 2, 3))
    assert (light[::2] < 0).all() and (light[1::2] > 0).all()


@quick
@given(numbers)
def test_the_unrelated_clip_and_the_wrong_edit_are_neither_the_source_nor_the_true_edit(number):
    scene, others = ALL[number], SPRITES if number < len(SPRITES) else ALL[len(SPRITES) :]
    for kind, least in (("A2", LEAST_CHANGE), ("A8", 0.3)):
        clip = made(scene, kind, others)
        assert min(changed_share(clip, scene.source), changed_share(clip, scene.truth)) >= least


def test_sprite_scenes_are_the_same_whatever_their_number_and_bring_every_operation():
    few = sprite_scenes(6)
    for one, other in zip(few, SPRITES, strict=False):
        assert one.instruction == other.instruction and (one.truth == other.truth).all()
    operations = [parse_instruction(scene.instruction)["operation"] for scene in SPRITES]
    assert {name: operations.count(name) >= 8 for name in ("recolour", "reshape", "remove")} == dict.fromkeys(
        ("recolour", "reshape", "remove"), True
    )
    assert len({scene.name for scene in SPRITES}) == 44


def test_half_of_the_recoloured_sprites_come_back_in_the_colour_that_swapped_channels_would_show():
    recoloured = [s for s in SPRITES if parse_instruction(s.instruction)["operation"] == "recolour"]
    fooled = 0
    for scene in recoloured:
        inside = np.broadcast_to(scene.mask, scene.truth.shape)
        near = [np.abs(clip.astype(int) - scene.truth)[inside].mean() for clip in (scene.wrong[:, ::-1], scene.wrong)]
        fooled += near[0] < near[1]
    assert len(recoloured) // 3 <= fooled < len(recoloured)


@pytest.mark.parametrize("frames", (7, 18))
def test_sprite_anchors_say_how_many_frames_they_need(frames):
    with pytest.raises(ConfigError, match=f"8 to 17 frames, not {frames}"):
        sprite_scenes(4, frames=frames)


def test_a_fault_that_does_not_show_is_left_out():
    scene = SPRITES[0]
    still = replace(scene, truth=np.repeat(scene.truth[:1], 17, axis=0), source=np.repeat(scene.source[:1], 17, axis=0))
    everywhere = replace(scene, mask=np.ones_like(scene.mask))
    assert anchor_clip(still, "A6", SPRITES) is None and anchor_clip(still, "A5", SPRITES) is None
    assert anchor_clip(everywhere, "A3", SPRITES) is None
    assert anchor_clip(scene, "A8", [scene]) is None


def test_an_unrelated_clip_of_another_size_and_length_is_brought_to_the_scenes():
    other = sprite_scenes(2, frames=9, size=48)[1]
    clip = anchor_clip(SPRITES[0], "A8", [SPRITES[0], other])
    assert clip is not None and clip.shape == SPRITES[0].source.shape


def test_a_users_clip_is_recoloured_inside_its_mask_as_its_instruction_says():
    rgb = {"red": 0, "blue": 2}
    seen = set()
    for scene in PHOTOGRAPHS:
        colour = scene.instruction.removeprefix("make the oval in the middle ")
        if colour in rgb:
            inside = scene.truth.transpose(1, 0, 2, 3)[:, scene.mask[:, 0]].mean(axis=1)
            assert inside.argmax() == rgb[colour]
            seen.add(colour)
    assert seen == {"red", "blue"}


def test_a_users_true_edit_is_kept_and_his_clips_are_read_again_when_asked_for():
    clip = panned("coffee", 3)
    truth = np.where(clip.mask, 255 - clip.source, clip.source)
    found = MaskedScenes([replace(clip, truth=truth, instruction="invert the oval", object=None)])
    assert len(found) == 1 and (found[0].truth == truth).all() and found[0].instruction == "invert the oval"
    assert [scene.name for scene in found] == [clip.name] and found[:1][0].name == clip.name
    with pytest.raises(IndexError):
        found[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"object": None}, "neither a true edit nor the name"),
        ({"mask": np.zeros((9, 1, 64, 96), bool)}, "covers 0.0% of the picture"),
        ({"mask": np.ones((9, 1, 64, 96), bool)}, "covers 100.0%"),
        ({"mask": np.ones((9, 1, 64, 64), bool)}, "does not fit its source"),
        ({"truth": np.zeros((9, 3, 64, 64), np.uint8)}, "true edit uint8"),
        ({"source": np.zeros((9, 3, 64, 96), np.float32)}, "must be uint8"),
        ({"source": np.zeros((4, 3, 64, 96), np.uint8), "mask": np.ones((4, 1, 64, 96), bool)}, "at least 8"),
    ],
)
def test_a_clip_that_cannot_serve_is_named_with_the_reason_and_the_others_serve(change, words):
    good = panned("astronaut", 0)
    bad = MaskedClip(**{**vars(panned("chelsea", 1)), "name": "bad", **change})
    found = MaskedScenes([bad, good])
    assert [scene.name for scene in found] == [good.name]
    assert len(found.reasons) == 1 and found.reasons[0].startswith("bad: ") and words in found.reasons[0]
    with pytest.raises(IveditError, match=r"no clip can serve as an anchor: bad: "):
        MaskedScenes([bad])


def test_a_true_edit_without_words_or_without_effect_cannot_serve():
    clip = panned("rocket", 2)
    found = MaskedScenes([
        replace(clip, name="silent", truth=255 - clip.source, object=None),
        replace(clip, name="equal", truth=clip.source, instruction="do nothing"),
        clip,
    ])
    assert [reason.split(":")[0] for reason in found.reasons] == ["silent", "equal"]


def test_a_film_strip_shows_the_source_and_every_kind_that_shows_its_fault():
    whole = anchor_strip(SPRITES, 0, frames=4)
    scene = SPRITES[0]
    still = replace(scene, truth=np.repeat(scene.truth[:1], 17, axis=0))
    less = anchor_strip([still, *SPRITES[1:]], 0, frames=4)  # nothing moves: neither A5 nor A6 shows
    row = (whole.height - less.height) // 2
    assert 64 <= row <= 80 and whole.height >= 9 * row


def test_the_picture_in_the_guide_shows_these_anchors():
    """Made by ``anchor_strip(sprite_scenes(), 0).save(...)``; letters may differ a little among libraries."""
    shown = PIL.Image.open(Path(__file__).parents[2] / "docs" / "judge" / "anchors.png").convert("RGB")
    made = anchor_strip(SPRITES, 0)
    assert shown.size == made.size
    assert np.abs(np.asarray(shown, int) - np.asarray(made, int)).mean() < 2
