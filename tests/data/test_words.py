from dataclasses import replace

import numpy as np
import pytest

from ivedit.config import TextConfig
from ivedit.data.record import PairTexts, build_reader
from ivedit.data.words import Words
from ivedit.errors import ConfigError

ALL = np.arange(200)


@pytest.fixture
def reader(config):
    return build_reader(config(pairs=200), "train")


def _text(words: Words, numbers) -> list[str]:
    return [words.unique[number] for number in numbers]


def _words(reader, null_edits=0.0, training=True, **text) -> Words:
    return Words(reader, TextConfig(**{"dropout": 0.0, **text}), null_edits, training=training)


def test_by_default_target_and_gate_read_the_instruction_and_the_source_nothing(reader):
    words = _words(reader)
    picked = words.pick(0, ALL)
    instructions = [text.instructions[0] for text in reader.texts(ALL)]
    assert _text(words, picked.target) == _text(words, picked.gate) == instructions
    assert not picked.source.any() and not picked.null.any() and not picked.mirrored.any()
    assert words.unique[0] == "" and len(set(words.unique)) == len(words.unique)


def test_the_target_may_read_the_target_caption_and_the_source_the_instruction(reader):
    words = _words(reader, target="target_caption", source="instruction")
    picked = words.pick(2, ALL)
    texts = reader.texts(ALL)
    assert _text(words, picked.target) == [text.target_caption for text in texts]
    assert _text(words, picked.gate) == _text(words, picked.source) == [text.instructions[0] for text in texts]


def test_dropout_empties_target_and_gate_of_about_the_share_and_leaves_the_source(reader):
    words = _words(reader, dropout=0.3, source="instruction")
    shares = []
    for epoch in range(5):
        picked = words.pick(epoch, ALL)
        assert np.array_equal(picked.target == 0, picked.gate == 0)
        assert picked.source.all() and not picked.null.any()
        shares.append((picked.target == 0).mean())
    assert 0.2 < np.mean(shares) < 0.4 and len(set(shares)) > 1


def test_null_edits_have_empty_texts(reader):
    picked = _words(reader, null_edits=0.25).pick(1, ALL)
    assert 0.12 < picked.null.mean() < 0.4
    assert np.array_equal(picked.null, picked.target == 0) and np.array_equal(picked.null, picked.gate == 0)


def test_validation_has_neither_dropout_nor_null_edits_nor_mirroring(reader):
    reader.flip = 1.0
    picked = Words(reader, TextConfig(dropout=1.0), 1.0, training=False).pick(0, ALL)
    assert picked.target.all() and picked.gate.all() and not picked.null.any() and not picked.mirrored.any()


def test_a_shuffled_gate_reads_another_pairs_different_instruction(reader):
    words = _words(reader, gate="shuffled")
    before = None
    for epoch in range(3):
        picked = words.pick(epoch, ALL)
        assert (picked.gate != picked.target).all() and picked.gate.all()
        assert np.array_equal(picked.gate, words.pick(epoch, ALL).gate)
        assert set(picked.gate) <= set(picked.target)
        assert before is None or not np.array_equal(before, picked.gate)
        before = picked.gate


@pytest.mark.parametrize("gate", ["instruction", "shuffled"])
def test_choices_do_not_depend_on_the_batch_or_on_earlier_epochs(reader, gate):
    reader.flip = 0.5
    make = {"null_edits": 0.2, "gate": gate, "dropout": 0.2}
    whole = _words(reader, **make).pick(4, ALL)
    words = _words(reader, **make)
    words.pick(1, ALL[:9])
    for part in (ALL[:1], ALL[50:99], ALL[::-1]):
        some = words.pick(4, part)
        for field in ("target", "gate", "source", "null", "mirrored"):
            assert np.array_equal(getattr(some, field), getattr(whole, field)[part]), field


def test_mirroring_spares_pairs_that_name_a_side(reader):
    reader.flip = 1.0
    words = _words(reader)
    mirrored = words.pick(0, ALL).mirrored
    sided = [
        any(word in " ".join((*text.instructions, text.source_caption, text.target_caption)).split()
            for word in ("left", "right"))
        for text in reader.texts(ALL)
    ]
    assert np.array_equal(mirrored, ~np.array(sided)) and mirrored.any() and any(sided)


class _Without:
    """A reader whose words are changed."""

    def __init__(self, reader, change):
        self.reader, self.change = reader, change
        self.seed, self.flip = reader.seed, reader.flip

    def __len__(self):
        return len(self.reader)

    def texts(self, indices) -> list[PairTexts]:
        return [self.change(text) for text in self.reader.texts(indices)]


def test_missing_captions_are_named(reader):
    def change(text):
        return replace(text, target_caption=None) if text.id == "train-000007" else text

    with pytest.raises(ConfigError, match=r"1 pairs have no target caption \(train-000007\)"):
        _words(_Without(reader, change), target="target_caption")


def test_shuffling_needs_different_instructions(reader):
    with pytest.raises(ConfigError, match=r"text\.gate=shuffled"):
        _words(_Without(reader, lambda text: replace(text, instructions=("same",))), gate="shuffled")
