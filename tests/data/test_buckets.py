"""Pairs of several picture sizes: which size each gets, which batch comes when, and what happens on resume."""

import itertools
import logging
import math
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ivedit.data.cache
import ivedit.data.images
from ivedit.config.buckets import LADDER, bucket_sizes, ladder, nearest_bucket
from ivedit.data.buckets import Buckets, sort_pairs
from ivedit.data.datamodule import PairDataModule
from ivedit.data.images import _cover
from ivedit.data.pixels import read_ahead
from ivedit.data.record import build_reader
from ivedit.data.shards import Shards
from ivedit.errors import ConfigError, IveditError

from .conftest import PhotoFolder, ToyEncoders
from .setfiles import pair_rows, write_parquet

THREE = ["32x48", "48x32", "32x32"]
seeds = st.integers(0, 2**63 - 1)


# ---- sizes


@settings(deadline=None, max_examples=40)
@given(st.integers(4, 90), st.integers(4, 90), st.sampled_from([16, 32]))
def test_a_ladder_keeps_the_area_and_holds_every_ratio_once(rows, columns, multiple):
    base = (rows * multiple, columns * multiple)
    sizes = ladder(base, multiple)
    assert base in sizes and base[::-1] in sizes
    ratios = [width / height for height, width in sizes]
    assert ratios == sorted(ratios)
    for (height, width), ratio in zip(sizes, ratios, strict=True):
        assert height % multiple == width % multiple == 0
        assert abs(height * width / math.prod(base) - 1) <= 0.03
        rungs = [*LADDER, *(1 / long for long in LADDER)]
        assert (height, width) in (base, base[::-1]) or min(abs(math.log(ratio / rung)) for rung in rungs) <= 0.05
    assert bucket_sizes([f"auto:{base[0]}x{base[1]}"], multiple) == sizes


def test_the_ladder_of_wans_own_size_is_what_the_documentation_says():
    sizes = ladder((480, 832), 16)
    assert sizes == [
        (960, 416), (896, 448), (832, 480), (784, 512), (736, 544), (624, 640), (544, 736), (512, 784), (480, 832),
        (448, 896), (416, 960),
    ]
    assert all(abs(height * width / (480 * 832) - 1) <= 0.01 for height, width in sizes)
    assert (640, 640) in ladder((480, 832), 32)  # at 32 no square comes closer than 2.6%


@given(
    st.tuples(st.integers(8, 4000), st.integers(8, 4000)),
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=8),
)
def test_the_nearest_bucket_is_the_one_that_cuts_least(size, cells):
    sizes = [(16 * rows, 16 * columns) for rows, columns in cells]

    def kept(bucket):
        left, top, right, bottom = _cover(size[::-1], *bucket)
        return (right - left) * (bottom - top) / math.prod(size)

    # The crop is cut to whole pixels: two of nearly one shape may change places by half a pixel each.
    assert kept(sizes[nearest_bucket(size, sizes)]) >= max(map(kept, sizes)) - 1 / min(size) - 1e-9


# ---- order


def _divided(counts, shuffle=0):
    """Buckets of so many pairs, the pairs of each spread over the whole table."""
    places = np.random.default_rng(shuffle).permutation(sum(counts))
    cuts = np.cumsum([0, *counts])
    members = tuple(np.sort(places[a:b]).astype(np.int64) for a, b in itertools.pairwise(cuts))
    return Buckets(tuple((16, 16 * (i + 1)) for i in range(len(counts))), members)


several = st.lists(st.integers(0, 40), min_size=2, max_size=5)


@given(seeds, st.integers(0, 9), several, st.integers(1, 5), st.integers(1, 4))
def test_ranks_take_the_same_bucket_equally_often_and_no_pair_twice(seed, epoch, counts, batch, world):
    buckets = _divided(counts)
    parts = [buckets.epoch(seed, epoch, batch, rank, world) for rank in range(world)]
    length = buckets.batches_per_epoch(batch, world)
    assert [len(part) for part in parts] == [length] * world  # the same in every epoch: it does not depend on it
    of = buckets.of
    for step in zip(*parts, strict=True):
        assert len({int(of[index]) for indices in step for index in indices}) == 1
        assert [len(indices) for indices in step] == [batch] * world
    seen = [int(index) for part in parts for indices in part for index in indices]
    assert len(set(seen)) == len(seen)
    # What is left out is less than a step's pairs of each bucket.
    left = np.bincount(of, minlength=len(counts)) - np.bincount(of[seen], minlength=len(counts)) if seen else counts
    assert all(rest < batch * world for rest in left)
    whole = buckets.epoch(seed, epoch, batch * world, 0, 1)
    assert [list(np.concatenate(step)) for step in zip(*parts, strict=True)] == [list(indices) for indices in whole]


@given(seeds, st.integers(0, 9), several, st.integers(1, 5), st.integers(1, 20))
def test_a_bucket_that_grows_leaves_the_order_of_the_others_alone(seed, epoch, counts, batch, more):
    before = _divided(counts)
    total = sum(counts)
    grown = Buckets(
        before.sizes,
        (np.concatenate([before.members[0], np.arange(total, total + more)]), *before.members[1:]),
    )

    def others(buckets):
        of = buckets.of
        return [indices.tolist() for indices in buckets.epoch(seed, epoch, batch, 0, 1) if of[indices[0]] != 0]

    assert others(before) == others(grown)


def test_buckets_come_mixed_and_another_rest_is_left_out_each_epoch():
    buckets = _divided([40, 41, 22])
    firsts = [buckets.of[[indices[0] for indices in buckets.epoch(0, epoch, 4, 0, 1)]] for epoch in range(6)]
    assert all(sorted(first) == sorted(firsts[0]) for first in firsts) and len({tuple(f) for f in firsts}) == 6
    for first in firsts:  # no bucket waits for another one to end
        assert max(np.flatnonzero(first == 0).mean(), np.flatnonzero(first == 1).mean()) < 0.75 * len(first)
    unseen = [set(range(103)) - set(np.concatenate(buckets.epoch(0, epoch, 4, 0, 1))) for epoch in range(6)]
    assert {len(rest) for rest in unseen} == {1 + 2} and len(set.union(*unseen)) > 6


@given(several, st.integers(1, 5), st.integers(1, 3))
def test_validation_batches_hold_one_bucket_and_every_pair_once(counts, batch, world):
    buckets = _divided(counts)
    parts = [buckets.in_order(batch, rank, world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    seen = [int(index) for part in parts for indices in part for index in indices]
    assert len(set(seen)) == len(seen) >= sum(count // world * world for count in counts)
    assert all(len(set(buckets.of[indices])) == 1 for part in parts for indices in part)


@given(several, st.data())
def test_a_stand_in_is_of_the_same_bucket(counts, data):
    buckets = _divided(counts)
    good = np.array(data.draw(st.lists(st.booleans(), min_size=sum(counts), max_size=sum(counts))), dtype=bool)
    found, of = buckets.stand_ins(good), buckets.of
    for index, other in enumerate(found):
        alive = good[buckets.members[of[index]]].any()
        assert (other == -1) if not alive else (good[other] and of[other] == of[index])
        assert not good[index] or other == index


# ---- from files to batches


@pytest.fixture
def mixed(tmp_path):
    """36 photographs in turn wide, tall and square (width x height), of many real sizes."""
    return PhotoFolder(tmp_path / "photos", 36, (96, 64), (60, 90), (70, 72), (75, 50), (64, 92), (66, 64))


def _config(mixed, **data):
    cfg = mixed.config(**{"buckets": THREE, "pairs": 100, "validation_pairs": 6, **data})
    cfg.train.batch_size = 2
    return cfg


def _module(cfg, encoders=None, **where):
    encoders = encoders or ToyEncoders()
    return PairDataModule(cfg, encoders.encode_pixels, encoders.encode_text, encoders.fingerprint, **where)


def _same(a, b):
    texts = ("text_target", "text_gate", "text_source")
    return (
        a["ids"] == b["ids"]
        and a["numbers"].tolist() == b["numbers"].tolist()
        and all(torch.equal(a[name], b[name]) for name in ("source", "target"))
        and all(torch.equal(a[t].states, b[t].states) for t in texts)
    )


def _all_same(first, second):
    return all(_same(a, b) for a, b in zip(first, second, strict=True))


def test_every_pair_is_cut_to_the_size_nearest_to_its_own_shape(mixed):
    module = _module(_config(mixed))
    reader = module.reader("train")
    found = {}
    for batch in module.train_dataloader():
        for name, source, target in zip(batch["ids"], batch["source"], batch["target"], strict=True):
            assert source.shape == target.shape
            found[name] = tuple(8 * side for side in source.shape[-2:])
    shapes = {0: (32, 48), 1: (48, 32), 2: (32, 32)}
    assert found and all(size == shapes[int(name[1:]) % 3] for name, size in found.items())
    assert set(found.values()) == set(shapes.values())
    record = reader.read(int(np.flatnonzero(module.buckets("train").of == 1)[0]))
    assert record.source.shape == (3, 48, 32)
    assert sum(module.buckets("train").counts().values()) == len(reader) == 33  # a tenth is held out


def test_pairs_in_a_parquet_file_come_as_those_of_a_folder(mixed, tmp_path):
    for number, row in enumerate(mixed.rows):
        row["split"] = "val" if number % 6 == 5 else "train"
    wrapped = write_parquet(tmp_path / "pairs.parquet", pair_rows(mixed))
    folder, parquet = _config(mixed), _config(mixed, reader="set", path=str(wrapped))
    assert _all_same(_module(folder).train_dataloader(), _module(parquet).train_dataloader())


@pytest.mark.parametrize("extra", [{}, {"null_edits": 0.5, "flip": 0.5}])
def test_batches_are_the_same_with_every_cache(mixed, tmp_path, extra):
    reference = _module(_config(mixed, **extra))
    disk = {"cache": "disk", "cache_dir": str(tmp_path / "cache")}
    for data in ({"cache": "none"}, {"cache": "none", "workers": 2}, {"workers": 2}, {"encode_batch": 3}, disk, disk):
        other = _module(_config(mixed, **extra, **data))
        for loader in ("train_dataloader", "val_dataloader"):
            assert _all_same(getattr(reference, loader)(), getattr(other, loader)())
        reference.set_position(0)


def test_one_size_alone_may_differ_from_the_configured_one(mixed):
    batch = next(iter(_module(_config(mixed, buckets=["48x48"])).train_dataloader()))
    assert batch["source"].shape[-2:] == (6, 6)


def test_every_position_of_two_epochs_continues_with_the_very_next_batch(mixed):
    module, resumed = _module(_config(mixed, null_edits=0.2)), _module(_config(mixed, null_edits=0.2))
    states, whole = [module.state_dict()], []
    for _ in range(2):
        for batch in module.train_dataloader():
            whole.append(batch)
            states.append(module.state_dict())
    assert len(whole) == 2 * module.batches_per_epoch == 32 and len({b["source"].shape for b in whole}) == 3
    for done, state in enumerate(states[:-1]):
        resumed.load_state_dict(state)
        rest = [batch for _ in range(2 - done // 16) for batch in resumed.train_dataloader()]
        assert _all_same(rest, whole[done:])


def test_ranks_see_together_what_one_sees(mixed):
    whole, half = _config(mixed), _config(mixed)
    half.train.batch_size = 1
    one = list(_module(whole).train_dataloader())
    ranks = [_module(half, rank=rank, world=2) for rank in range(2)]
    for batch, left, right in zip(one, *(module.train_dataloader() for module in ranks), strict=True):
        assert batch["ids"] == left["ids"] + right["ids"]
        assert torch.equal(batch["target"], torch.cat([left["target"], right["target"]]))
    numbers = [index for module in ranks for batch in module.val_dataloader() for index in batch["numbers"].tolist()]
    assert len(set(numbers)) == len(numbers)


def test_another_division_is_refused_on_resume_and_old_checkpoints_still_fit(mixed):
    state = _module(_config(mixed)).state_dict()
    with pytest.raises(ConfigError, match=r"another division into data\.buckets \(\{'32x48': 10"):
        _module(_config(mixed, buckets=["32x48", "48x32"])).load_state_dict(state)
    plain = _module(_config(mixed, buckets=[]))
    with pytest.raises(ConfigError, match=r"data\.buckets"):
        plain.load_state_dict(state)
    old = {key: value for key, value in plain.state_dict().items() if key != "buckets"}
    plain.load_state_dict({**old, "batch": 3})
    assert plain.position.batch == 3


def test_a_size_too_rare_for_a_batch_is_named_with_the_fix(tmp_path, caplog):
    photos = PhotoFolder(tmp_path / "photos", 20, *[(96, 64)] * 6, (60, 90))
    cfg = _config(photos)
    cfg.train.batch_size = 4
    with caplog.at_level(logging.INFO, "ivedit"):
        module = _module(cfg)
        assert module.batches_per_epoch == 4
    assert "train pairs by size (height x width): 32x48 16, 48x32 2" in caplog.text
    assert "2 of 18 training pairs are never trained on" in caplog.text
    assert "48x32 has 2" in caplog.text and "data.buckets=[32x48]" in caplog.text and "batch_size to 2" in caplog.text
    cfg.train.batch_size = 17
    with pytest.raises(ConfigError, match=r"needs 17 of them, but 32x48 has 16, 48x32 has 2: lower train.batch_size"):
        _module(cfg).setup()


def test_a_ladder_of_a_single_size_is_told(mixed, caplog):
    with caplog.at_level(logging.INFO, "ivedit"):
        _module(_config(mixed, buckets=["auto:64x64"])).setup()
    assert "train pairs by size (height x width): 64x64 " in caplog.text


def test_sizes_are_read_once_and_again_only_where_a_file_changed(mixed, tmp_path, monkeypatch):
    cfg = _config(mixed, cache="disk", cache_dir=str(tmp_path / "cache"))
    opened = []
    original = ivedit.data.images.image_size
    monkeypatch.setattr(ivedit.data.images, "image_size", lambda file: opened.append(file.name) or original(file))
    first = sort_pairs(build_reader(cfg, "train"), cfg)
    assert len(opened) == 33
    opened.clear()
    again = sort_pairs(build_reader(cfg, "train"), cfg)
    assert opened == [] and again.counts() == first.counts()
    changed = mixed.root / mixed.rows[0]["source"]
    os.replace(mixed.root / mixed.rows[1]["source"], changed)
    assert sort_pairs(build_reader(cfg, "train"), cfg).counts() != first.counts()
    assert opened == [changed.name, mixed.rows[1]["source"].split("/")[-1]]


def test_unreadable_pairs_are_replaced_within_their_size_alike_in_every_cache(mixed, tmp_path):
    (mixed.root / mixed.rows[1]["target"]).write_bytes(b"GIF89a broken")  # tall, its header is fine
    (mixed.root / mixed.rows[2]["source"]).write_bytes(b"")  # nobody can tell its shape
    runs = [
        list(_module(_config(mixed, bad_share=0.5, **data)).train_dataloader())
        for data in ({}, {"cache": "none"}, {"cache": "none", "workers": 1})
    ]
    assert all(_all_same(runs[0], other) for other in runs[1:])
    assert not {"p1", "p2"} & {name for batch in runs[0] for name in batch["ids"]}


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_size_without_one_readable_pair_stops_the_run_by_name(mixed, cache):
    for row in mixed.rows[1::3]:
        (mixed.root / row["target"]).write_bytes(b"")
    with pytest.raises(IveditError, match=r"size 48x32"):
        list(_module(_config(mixed, bad_share=0.9, cache=cache)).train_dataloader())


def test_sizes_must_fit_the_backbone_and_the_reader_must_tell_them(mixed, config):
    with pytest.raises(ConfigError, match=r"data\.buckets: 48x32.*multiples of 32; the nearest is 64x32"):
        _module(_config(mixed, buckets=["48x32"]), multiple=32).setup()
    with pytest.raises(ConfigError, match=r"SpritesReader does not tell the sizes"):
        _module(config(buckets=["64x64", "48x80"])).setup()


# ---- filling


def test_reading_ahead_keeps_order_and_passes_errors_on_in_their_place():
    def items():
        yield from range(5)
        raise ValueError("broken")

    seen = []
    with pytest.raises(ValueError, match="broken"):
        for item in read_ahead(items(), 2):
            seen.append(item)
    assert seen == [0, 1, 2, 3, 4]


def test_reading_ahead_ends_with_its_reader_and_is_bounded():
    made = []

    def endless():
        while True:
            made.append(len(made))
            yield made[-1]

    stream = read_ahead(endless(), 2)
    assert next(stream) == 0
    time.sleep(0.3)
    assert len(made) <= 5
    stream.close()
    count = len(made)
    time.sleep(0.3)
    assert len(made) == count


def _fill_slowly(photos, folder):
    class Slow(ToyEncoders):
        def encode_pixels(self, pixels):
            time.sleep(0.2)
            return super().encode_pixels(pixels)

    ivedit.data.cache._SHARD_BYTES = 1
    _module(_config(photos, cache="disk", cache_dir=folder, encode_batch=2), Slow()).setup()


def test_a_killed_fill_goes_on_where_its_last_shard_ended(mixed, tmp_path):
    cache = tmp_path / "cache"
    child = multiprocessing.get_context("fork").Process(target=_fill_slowly, args=(mixed, str(cache)))
    child.start()
    while child.is_alive() and len(list(cache.glob("*/latents/*.safetensors"))) < 4:
        time.sleep(0.05)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    (folder,) = cache.glob("*/latents")
    rows = len(Shards(folder))
    assert 4 <= rows < 2 * 36
    rest = ToyEncoders()
    cfg = _config(mixed, cache="disk", cache_dir=str(cache))
    found = list(_module(cfg, rest).train_dataloader())
    assert rest.images == 2 * (33 + 3) - rows
    assert _all_same(found, _module(_config(mixed)).train_dataloader())
