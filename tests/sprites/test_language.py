"""Captions: every template says the facts, within a closed vocabulary."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ivedit.sprites import SPLITS, all_words, captions, describe, parse_caption, sample_scenes
from ivedit.sprites import language as lang
from ivedit.sprites import vocabulary as v


def comparable(facts: dict, with_places: bool) -> dict:
    objects = [{**one, "place": one["place"] if with_places else None} for one in facts["objects"]]
    return {**facts, "objects": sorted(objects, key=str)}


def read_back(scenes, texts) -> None:
    for truth, text in zip(describe(scenes), texts, strict=True):
        found = parse_caption(text)
        placed = any(one["place"] for one in found["objects"])
        assert comparable(found, placed) == comparable(truth, placed), text


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), split=st.sampled_from(SPLITS))
def test_captions_read_back_to_the_scene(seed, split):
    index = torch.arange(40)
    scenes = sample_scenes(seed, index, split)
    read_back(scenes, captions(scenes, seed, index))


def test_every_template_reads_back():
    forms = range(len(lang.OBJECT_TEMPLATES) * len(lang.MOTION_TEMPLATES))
    motions = range(len(v.SPEEDS) * len(v.DIRECTIONS) * 2 * len(v.SPINS))
    for form, motion, place in itertools.product(forms, motions, (0, 4, 8, 9)):
        text = lang._clause(form, 100, motion, place)
        found = lang._parse_object(text.removeprefix("a "))
        speed, direction = divmod(motion // 6, len(v.DIRECTIONS))
        assert found["speed"] == v.SPEEDS[speed]
        assert found["direction"] == (v.DIRECTIONS[direction] if speed else None)
        assert found["spin"] == v.SPINS[motion % 3]
        assert found["bounces"] == bool(motion // 3 % 2 and speed)
        assert found["place"] == (v.PLACES[place] if place < 9 else None)


def test_templates_are_all_drawn():
    index = torch.arange(4000)
    scenes = sample_scenes(0, index, "pretrain")
    texts = captions(scenes, 0, index)
    openings = {" ".join(text.split()[:3]) for text in texts}
    assert len(openings) > 100
    for phrase in ("a clip of", "a scene with", " over a ", " with a ", "that moves", "going", "bouncing", "at rest"):
        assert any(phrase in text for text in texts), phrase
    assert any(text.startswith("on a ") for text in texts) and any("nothing" in text for text in texts)


def test_captions_are_short_and_use_known_words_only():
    index = torch.arange(1000)
    words = set(all_words())
    for split in ("pretrain", "test_three"):
        for text in captions(sample_scenes(1, index, split), 1, index):
            assert len(text.split()) <= 60
            assert text == " ".join(text.lower().split())
            assert set(text.split()) <= words, text
    assert all_words() == sorted(words) and len(words) < 200


def test_wording_depends_on_seed_and_index_only():
    index = torch.arange(50)
    scenes = sample_scenes(0, index)
    together = captions(scenes, 7, index)
    assert together == [captions(scenes[k : k + 1], 7, index[k : k + 1])[0] for k in range(50)]
    assert together != captions(scenes, 8, index)


def test_text_of_another_world_is_refused():
    with pytest.raises(ValueError, match="elephant"):
        parse_caption("a large elephant on a plain black background")
    with pytest.raises(ValueError, match="expected one colour"):
        parse_caption("a large circle at rest on a plain black background")
