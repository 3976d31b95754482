import pytest
import torch

import ivedit.sprites as world
from ivedit.data.record import build_reader
from ivedit.data.sprites import SET_SEED, SpritesReader
from ivedit.errors import ConfigError
from ivedit.sprites.pairs import render_pairs, sample_pairs


def test_a_pair_is_one_frame_of_the_clip_of_that_index(config):
    reader = build_reader(config(), "train")
    pairs = sample_pairs(SET_SEED, torch.arange(24), "train")
    source, target, _ = render_pairs(pairs)
    for index in (0, 7, 23):
        record = reader.read(index)
        frame = int(reader.frames[index])
        assert (record.source - source[index, frame]).abs().max() <= 0.5001 / 255
        assert (record.target - target[index, frame]).abs().max() <= 0.5001 / 255
        assert record.instruction == pairs.instruction[index]
        assert record.target_caption == pairs.target_caption[index]
        assert record.operation == world.OPERATIONS[pairs.operation[index]]
    assert len(set(reader.frames.tolist())) > 8


def test_pixels_are_8_bit_and_alike_alone_and_in_a_batch(config):
    reader = build_reader(config(), "train")
    batch = reader.load_batch(range(24))
    assert batch.source.dtype == torch.uint8 and batch.source.shape == (24, 3, 64, 64)
    for index in range(24):
        record = reader.read(index)
        assert torch.equal(record.source, batch.source[index].float() / 255)
        assert torch.equal(record.target, batch.target[index].float() / 255)


def test_images_agree_outside_the_mask_and_differ_inside(config):
    reader = build_reader(config(), "val")
    for index in range(len(reader)):
        record = reader.read(index)
        differs = (record.source != record.target).any(0, keepdim=True)
        assert torch.equal(record.mask, differs.float())


def test_the_set_does_not_change_with_its_size_or_the_runs_seed(config):
    small, large = build_reader(config(pairs=5), "train"), build_reader(config(pairs=20), "train")
    other = config(pairs=5)
    other.seed = 99
    assert small.texts(range(5)) == large.texts(range(5)) == build_reader(other, "train").texts(range(5))
    assert small.keys(range(5)) == large.keys(range(5))
    assert torch.equal(small.load_batch([4]).source, large.load_batch([4]).source)


def test_splits_and_selections_have_pairs_and_keys_of_their_own(config):
    train, val = build_reader(config(), "train"), build_reader(config(), "val")
    assert len(train) == 24 and len(val) == 6
    assert not set(train.keys(range(6))) & set(val.keys(range(6)))
    only = build_reader(config(operations=["recolour", "remove"]), "train")
    assert {words.operation for words in only.texts(range(24))} == {"recolour", "remove"}
    assert not set(train.keys(range(6))) & set(only.keys(range(6)))
    assert not set(train.keys(range(6))) & set(SpritesReader("train", 6, size=32).keys(range(6)))


def test_other_sizes_are_drawn_at_that_size(config):
    record = build_reader(config(height=32, width=32), "train").read(0)
    assert record.source.shape == (3, 32, 32)
    with pytest.raises(ConfigError, match="square"):
        build_reader(config(height=32), "train")


def test_an_unknown_operation_names_the_nearest(config):
    with pytest.raises(ConfigError, match="'recolor' is not known; did you mean recolour"):
        build_reader(config(operations=["recolor"]), "train")


def test_an_index_out_of_range_is_refused(config):
    with pytest.raises(IndexError):
        build_reader(config(), "train").load(24)
