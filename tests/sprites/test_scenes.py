"""Scenes: pure functions of (seed, index), inside the frame, apart, true to their split."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ivedit.sprites import SPLITS, SceneBatch, captions, direction_labels, facts, render, sample_pairs, sample_scenes
from ivedit.sprites import vocabulary as v
from ivedit.sprites.scene import held_out, well_formed

seeds = st.integers(min_value=-(2**63), max_value=2**63 - 1)


def same(one: SceneBatch, other: SceneBatch) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(SceneBatch))


@settings(max_examples=10, deadline=None)
@given(seed=seeds, rows=st.lists(st.integers(0, 2**40), min_size=1, max_size=6), split=st.sampled_from(SPLITS))
def test_a_scene_does_not_depend_on_its_batch(seed, rows, split):
    together = sample_scenes(seed, torch.tensor(rows), split)
    alone = SceneBatch.cat([sample_scenes(seed, torch.tensor([row]), split) for row in rows])
    assert same(together, alone)
    order = torch.arange(len(rows)).flip(0)
    assert same(together[order], sample_scenes(seed, torch.tensor(rows).flip(0), split))


def test_seeds_indices_and_splits_give_other_scenes():
    index = torch.arange(200)
    starts = [sample_scenes(0, index, split).start for split in SPLITS]
    starts += [sample_scenes(1, index).start, sample_scenes(0, index + 200).start]
    for one in range(len(starts)):
        for other in range(one):
            shared = (starts[one][:, None] == starts[other][None]).flatten(2).all(-1)
            # Safe layouts of three still objects may coincide; free ones may not.
            assert shared.float().mean() < 0.02


@pytest.mark.parametrize("split", SPLITS)
def test_objects_stay_inside_and_apart_at_every_frame(split):
    scenes = sample_scenes(5, torch.arange(400), split)
    assert well_formed(scenes).all()
    centres, radius = scenes.centres(), scenes.bounds[..., None, None]
    inside = ((centres >= radius) & (centres <= v.CANVAS - radius)).all(-1).all(-1)
    assert inside[scenes.present].all()


def test_splits_hold_the_objects_they_promise():
    index = torch.arange(1500)
    for split in ("train", "val", "test", "test_phrasing"):
        scenes = sample_scenes(0, index, split)
        assert not held_out(scenes).any(), split
        assert set(scenes.present.sum(1).tolist()) == {1, 2}
        assert (scenes.style == 0).all()
    assert held_out(sample_scenes(0, index, "test_combination"))[:, 0].all()
    assert (sample_scenes(0, index, "test_three").present.sum(1) == 3).all()
    everything = sample_scenes(0, index, "pretrain")
    pairs = (everything.shape * len(v.COLOURS) + everything.colour)[everything.present]
    assert len(pairs.unique()) == len(v.SHAPES) * len(v.COLOURS)
    assert set(everything.present.sum(1).tolist()) == {0, 1, 2, 3}
    assert 0.05 < (everything.style > 0).float().mean() < 0.2


def test_every_property_is_drawn_about_equally_often():
    scenes = sample_scenes(0, torch.arange(6000), "pretrain")
    there = scenes.present
    for values, count in ((scenes.shape, 8), (scenes.colour, 8)):
        share = values[there].bincount(minlength=count) / there.sum()
        assert (share - 1 / count).abs().max() < 0.02
    moving = there & (scenes.speed > 0)
    share = scenes.direction[moving].bincount(minlength=8) / moving.sum()
    assert (share - 1 / 8).abs().max() < 0.02
    assert 0.6 < moving.sum() / there.sum() < 0.8
    assert scenes.size[there].bincount().min() / there.sum() > 0.12


def test_round_shapes_have_no_orientation():
    scenes = sample_scenes(0, torch.arange(3000), "pretrain")
    round_shape = torch.tensor(v.ROUND)[scenes.shape]
    assert (scenes.angles()[round_shape] == 0).all()
    assert (scenes.spin[scenes.present & ~round_shape] != 0).any()


def test_paths_move_as_named_and_turn_at_walls():
    scenes = sample_scenes(0, torch.arange(3000), "train")
    moves = scenes.centres()[:, :, 1:] - scenes.centres()[:, :, :-1]
    straight = scenes.present & (scenes.speed > 0) & ~scenes.bounces
    heading = torch.tensor(v.HEADINGS)[scenes.direction][:, :, None]
    assert (torch.sign(moves) == heading).all(-1).all(-1)[straight].all()
    steady = (moves == moves[:, :, :1]).all(-1).all(-1)
    assert steady[straight].all() and not steady[scenes.bounces].any()
    pace = moves[straight].norm(dim=-1)
    assert ((pace - torch.tensor(v.STRAIGHT)[scenes.speed][straight][:, None]).abs() < 0.01).all()
    still = scenes.present & (scenes.speed == 0)
    assert (moves[still] == 0).all() and (direction_labels(scenes)[still] == 8).all()


def test_frames_can_differ_between_scenes():
    scenes = sample_scenes(0, torch.arange(5))
    frames = torch.tensor([[0, 3], [16, 1], [2, 2], [5, 4], [8, 9]])
    expected = torch.stack([scenes.centres()[row][:, times] for row, times in enumerate(frames)])
    assert torch.equal(scenes.centres(frames), expected)


def test_facts_have_their_ranges_and_batches_their_sizes():
    scenes = sample_scenes(0, torch.arange(64), "pretrain")
    known = facts(scenes)
    assert known["motion"].max() <= 8 and known["spin"].max() <= 2 and known["place"].max() <= 8
    assert len(scenes[10:20]) == 10 and len(scenes[torch.tensor([3, 1])]) == 2
    assert len(SceneBatch.cat([scenes, scenes])) == 128
    assert same(scenes.to("cpu").canonical(), scenes)


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown split 'trian'.*test_three"):
        sample_scenes(0, torch.arange(2), "trian")


def test_the_world_is_the_one_that_shipped_weights_were_trained_on():
    """Changing this picture of the world on purpose means pretraining the shipped pipeline anew."""
    index = torch.arange(3)
    scenes = sample_scenes(0, index, "pretrain")
    assert captions(scenes, 0, index)[1] == (
        "a medium green circle moving slowly up left , a green triangle of small size that moves slowly left "
        "and a large white cross that stands still on a maroon and beige striped background"
    )
    means = render(scenes).double().mean((1, 2, 3, 4))
    assert torch.allclose(means, torch.tensor([0.941222, 0.496465, 0.422160], dtype=torch.float64), atol=1e-4)
    assert sample_pairs(0, index).instruction == [
        "make the background navy and lavender",
        "recolour the cyan diamond to red",
        "paint the purple square blue",
    ]
