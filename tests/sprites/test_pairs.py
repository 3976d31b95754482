"""Edit pairs: the words and the source give the target, only the mask changes, splits and operations as promised."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ivedit.sprites import (
    OPERATIONS,
    SPLITS,
    PairBatch,
    SceneBatch,
    all_words,
    describe,
    parse_caption,
    parse_instruction,
    render_pairs,
    resolve,
    sample_pairs,
)
from ivedit.sprites import instructions as wording
from ivedit.sprites import vocabulary as v
from ivedit.sprites.language import caption_words, words_of
from ivedit.sprites.scene import held_out, well_formed

ADD, COMPOUND = OPERATIONS.index("add"), OPERATIONS.index("compound")


def same(one: SceneBatch, other: SceneBatch) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(SceneBatch))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**40), start=st.integers(0, 2**40), split=st.sampled_from(SPLITS))
def test_the_instruction_and_the_source_give_the_target(seed, start, split):
    pairs = sample_pairs(seed, torch.arange(start, start + 18), split, balanced=True)
    for row, text in enumerate(pairs.instruction):
        assert same(resolve(pairs.source[row : row + 1], text), pairs.target[row : row + 1]), text
        parsed = parse_instruction(text)
        assert parsed["operation"] == OPERATIONS[pairs.operation[row]], text
        steps = [k for k in (int(pairs.primary[row]), int(pairs.secondary[row])) if k >= 0]
        assert [step["operation"] for step in parsed["steps"]] == [OPERATIONS[k] for k in steps], text
        assert any(step["follows"] for step in parsed["steps"]) == bool(pairs.needs_motion[row]), text


@settings(max_examples=6, deadline=None)
@given(rows=st.lists(st.integers(0, 2**30), min_size=1, max_size=5), split=st.sampled_from(SPLITS))
def test_a_pair_does_not_depend_on_its_batch(rows, split):
    together = sample_pairs(3, torch.tensor(rows), split)
    for k, row in enumerate(rows):
        alone = sample_pairs(3, torch.tensor([row]), split)
        part = together[k : k + 1]
        for field in fields(PairBatch):
            one, other = getattr(part, field.name), getattr(alone, field.name)
            if isinstance(one, SceneBatch):
                assert same(one, other)
            elif isinstance(one, torch.Tensor):
                assert torch.equal(one, other), field.name
            else:
                assert one == other, field.name


def test_pictures_differ_inside_the_mask_only_and_always_somewhere():
    pairs = sample_pairs(0, torch.arange(90), "pretrain", balanced=True)
    source, target, mask = render_pairs(pairs, torch.tensor([0, 16]))
    assert mask.shape == (90, 2, 64, 64) and set(mask.unique().tolist()) == {0.0, 1.0}
    inside = mask.bool()[:, :, None].expand_as(source)
    assert torch.equal(source[~inside], target[~inside])
    assert ((source != target).any(2) == mask.bool()).all()
    assert (mask.sum((-2, -1)) >= 10).all()
    visible = ((source - target).abs().amax(2) > 0.05).sum((-2, -1))
    assert (visible > 10).all(), visible.min()


def test_an_edit_of_an_object_leaves_all_else_alone():
    pairs = sample_pairs(1, torch.arange(200), "train", ["recolour", "reshape", "remove", "resize", "add"])
    _, _, mask = render_pairs(pairs, torch.tensor([8]))
    line = torch.arange(64) + 0.5
    rows = torch.arange(200)
    size = torch.maximum(pairs.source.bounds[rows, pairs.object], pairs.target.bounds[rows, pairs.object])
    scene = torch.where(pairs.operation == OPERATIONS.index("add"), 1, 0)
    centre = torch.stack((pairs.source.centres(), pairs.target.centres()))[scene, rows, pairs.object, 8]
    dx, dy = line - centre[:, 0, None], line - centre[:, 1, None]
    far = torch.hypot(dx[:, None], dy[..., None]) > size[:, None, None] + 1
    assert (mask[:, 0][far] == 0).all()


@pytest.mark.parametrize("split", SPLITS)
def test_operations_come_in_equal_numbers_when_balanced(split):
    pairs = sample_pairs(0, torch.arange(90), split, balanced=True)
    assert pairs.operation.bincount().tolist() == [10] * 9
    chosen = sample_pairs(0, torch.arange(40), split, ["style", "add"], balanced=True)
    assert chosen.operation.tolist() == [OPERATIONS.index("style"), ADD] * 20
    drawn = sample_pairs(0, torch.arange(2000), "train").operation.bincount() / 2000
    assert (drawn - 1 / 9).abs().max() < 0.03


@pytest.mark.parametrize("split", SPLITS)
def test_sources_and_targets_are_proper_scenes_of_the_split(split):
    pairs = sample_pairs(2, torch.arange(270), split)
    assert well_formed(pairs.source).all() and well_formed(pairs.target).all()
    assert same(pairs.source.canonical(), pairs.source) and same(pairs.target.canonical(), pairs.target)
    assert (pairs.source.style == 0).all()
    unseen = (held_out(pairs.source) | held_out(pairs.target)).any(1)
    number = torch.maximum(pairs.source.present.sum(1), pairs.target.present.sum(1))
    if split == "test_combination":
        assert unseen.all()
        created = held_out(pairs.target)[torch.arange(270), pairs.object] & (pairs.object >= 0)
        assert created.any()
    elif split != "pretrain":
        assert not unseen.any()
    if split == "test_three":
        assert (number == 3).all()
    elif split != "pretrain":
        assert number.max() <= 2


def test_splits_share_no_pair():
    seen: set[tuple] = set()
    for split in SPLITS:
        pairs = sample_pairs(0, torch.arange(80), split)
        starts = pairs.source.start.flatten(1).tolist()
        keys = {(*start, text) for start, text in zip(starts, pairs.instruction, strict=True)}
        assert not seen & keys
        seen |= keys


def test_round_shapes_have_no_orientation_after_an_edit():
    pairs = sample_pairs(0, torch.arange(1500), "train", ["reshape", "add"])
    rows = torch.arange(1500)
    shape = pairs.target.shape[rows, pairs.object]
    angles = pairs.target.angles()[rows, pairs.object]
    assert (angles[torch.tensor(v.ROUND)[shape]] == 0).all()
    from_round = torch.tensor(v.ROUND)[pairs.source.shape[rows, pairs.object]] & (pairs.operation != ADD)
    assert (angles[from_round] == 0).all() and (angles[pairs.operation == ADD] == 0).all()
    assert (angles != 0).any()


def test_a_follower_keeps_its_distance_and_needs_motion():
    pairs = sample_pairs(0, torch.arange(600), "train", ["add"])
    assert 0.2 < pairs.needs_motion.float().mean() < 0.45
    rows = torch.arange(600)
    centres = pairs.target.centres()
    added = centres[rows, pairs.object]
    steps = added[:, 1:] - added[:, :-1]
    assert ((steps != 0).flatten(1).any(1) == pairs.needs_motion).all()
    apart = (centres - added[:, None])[pairs.needs_motion]
    shares = (apart == apart[:, :, :1]).flatten(2).all(-1) & pairs.source.present[pairs.needs_motion]
    assert shares.any(1).all()


def test_instructions_are_short_and_use_known_words_only():
    words = set(all_words())
    for split in ("train", "pretrain", "test_phrasing", "test_three"):
        pairs = sample_pairs(1, torch.arange(400), split)
        for text in pairs.instruction:
            assert len(text.split()) <= 30 and text == " ".join(text.lower().split())
            assert set(text.split()) <= words, text


def test_held_out_phrasings_are_new_sentences_of_known_words():
    assert set(wording.TRAIN) == set(wording.UNSEEN) == set(OPERATIONS) - {"compound"}
    trained = [text for texts in wording.TRAIN.values() for text in texts]
    joins = [join.replace("{1}", "").replace("{2}", "") for join in wording.TRAIN_JOINS]
    known = words_of(*trained, *joins, *wording.NAMES, *v.RELATIONS, *v.STYLE_PHRASES) | caption_words()
    for operation, texts in wording.UNSEEN.items():
        assert len(wording.TRAIN[operation]) >= 4 and len(texts) >= 2
        assert not set(texts) & set(wording.TRAIN[operation])
        assert words_of(*texts) <= known, words_of(*texts) - known
    seen = sample_pairs(0, torch.arange(300), "test_phrasing", ["recolour", "style", "resize"]).instruction
    for text in seen:
        assert not text.startswith(("make", "paint", "turn", "change", "show", "resize", "recolour")), text


def test_captions_tell_the_source_and_the_target():
    pairs = sample_pairs(0, torch.arange(200), "pretrain")
    for scenes, texts in ((pairs.source, pairs.source_caption), (pairs.target, pairs.target_caption)):
        for truth, text in zip(describe(scenes), texts, strict=True):
            found = parse_caption(text)
            assert found["background_colours"] == truth["background_colours"] and found["style"] == truth["style"]
            looks = [sorted((o["shape"], o["colour"], o["size"]) for o in side["objects"]) for side in (found, truth)]
            assert looks[0] == looks[1], text


def test_mistakes_are_refused_by_name():
    with pytest.raises(ValueError, match="recolor"):
        sample_pairs(0, torch.arange(2), operations=["recolor"])
    with pytest.raises(ValueError, match="not an instruction"):
        parse_instruction("make the sky blue")
    source = sample_pairs(0, torch.arange(1), "train").source
    with pytest.raises(ValueError, match="0 objects fit"):
        resolve(replace(source, present=source.present & False), "remove the circle")


def test_an_empty_batch_is_a_batch():
    pairs = sample_pairs(0, torch.arange(0))
    assert len(pairs) == 0 and pairs.instruction == []
    source, target, mask = render_pairs(pairs)
    assert source.shape == target.shape == (0, 17, 3, 64, 64) and mask.shape == (0, 17, 64, 64)


def test_the_sheet_command_writes_a_picture(tmp_path):
    from PIL import Image

    from ivedit.sprites.__main__ import main

    main(["--count", "2", "--frames", "0", "16", "--columns", "2", "--out", str(tmp_path / "sheet.png")])
    assert Image.open(tmp_path / "sheet.png").width > 200


@pytest.mark.gpu
@pytest.mark.parametrize("split", SPLITS)
def test_a_gpu_draws_the_same_pairs(split):
    index = torch.arange(300)
    here, there = sample_pairs(0, index, split), sample_pairs(0, index.cuda(), split)
    assert same(here.source, there.source.to("cpu")) and same(here.target, there.target.to("cpu"))
    assert here.instruction == there.instruction and here.target_caption == there.target_caption
    frames = torch.tensor([0, 16])
    for one, other in zip(render_pairs(here, frames)[:2], render_pairs(there, frames)[:2], strict=True):
        assert (one - other.cpu()).abs().max() < 1e-3
