"""Streams: the same pairs as a set on disk, in an order that is repeated, resumed and shared between ranks exactly."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ivedit.data.record import build_reader
from ivedit.data.rowstream import RowStream
from ivedit.data.setfiles import find_files, set_plan
from ivedit.data.stream import StreamDataModule, pair_data
from ivedit.errors import ConfigError, IveditError

from .conftest import PhotoFolder, ToyEncoders
from .setfiles import pair_rows, tar_members, write_hub_layout, write_parquet, write_tar

COUNT = 30


class Hub(NamedTuple):
    """Pairs, their rows with the images' bytes, and the folder in the hub's layout."""

    photos: PhotoFolder
    rows: list[dict[str, Any]]
    root: Path

    def __repr__(self) -> str:  # a failing property would print every byte
        return str(self.root)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Thirty pairs in three shards of parquet, in the hub's layout, and their folder."""
    root = tmp_path_factory.mktemp("stream")
    photos = PhotoFolder(root / "photos", pairs=15)
    rows = pair_rows(photos)
    rows = [{**row, "id": f"p{i}", "instruction": [f"words {i}", f"other words {i}"], "score": i}
            for i, row in enumerate(rows + rows)]  # fmt: skip
    write_hub_layout(root / "hub", rows, {"train": slice(0, COUNT)}, shards=3)
    return Hub(photos, rows, root / "hub")


def module(hub, *, rank=0, world=1, encoders=None, **data):
    photos, _, root = hub
    values = {"pairs": 20, "validation_pairs": 2, "cache": "none", "shuffle_buffer": 8, "streaming": True, **data}
    cfg = photos.config(reader="set", **{"path": str(root), **values})
    cfg.train.batch_size = 4 // world
    toy = encoders or ToyEncoders()
    return pair_data(cfg, toy.encode_pixels, toy.encode_text, "toy", rank=rank, world=world)


def stream(hub, window=8, **others):
    plan = set_plan(module(hub).cfg)
    return RowStream(find_files(plan, "train"), plan.columns, min_scores={}, window=window, **others)


def names(windows, count):
    found = []
    for window in windows:
        found += [row.texts.id for row in window.rows]
        if len(found) >= count:
            return found[:count]
    raise AssertionError("a stream has no end")


def batches(pairs, count):
    found = []
    while len(found) < count:
        found += list(pairs.train_dataloader())
    return found[:count]


def test_a_pass_has_every_row_once_in_an_order_of_its_own(hub):
    first, again, other = (names(stream(hub).windows(epoch), COUNT) for epoch in (0, 0, 1))
    assert first == again != other
    assert sorted(first) == sorted(other) == sorted(f"p{i}" for i in range(COUNT))
    assert names(stream(hub, seed=1).windows(0), COUNT) != first
    assert first[:8] != sorted(first[:8], key=lambda name: int(name[1:]))


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(window=st.integers(1, 17), stop=st.integers(0, 2), epoch=st.integers(0, 1))
def test_a_window_begins_again_where_it_is_said_to(hub, window, stop, epoch):
    whole = stream(hub, window)
    windows = whole.windows(epoch)
    taken = [next(windows) for _ in range(stop + 1)]
    start = json.loads(json.dumps(taken[stop].start))  # it goes through a checkpoint
    resumed = stream(hub, window).windows(epoch, stop, start)
    for expected in taken[stop:]:
        found = next(resumed)
        assert [row.texts.id for row in found.rows] == [row.texts.id for row in expected.rows]
        assert found.number == expected.number and found.start["row"] == expected.start["row"]


def test_batches_are_repeated_exactly_whatever_reads_ahead(hub):
    plain, ahead = (batches(module(hub, workers=workers), 7) for workers in (0, 2))
    assert len(plain) == 7
    for a, b in zip(plain, ahead, strict=True):
        assert a["ids"] == b["ids"] and torch.equal(a["source"], b["source"]) and torch.equal(a["target"], b["target"])
        assert torch.equal(a["text_gate"].states, b["text_gate"].states)
    epoch = [name for batch in plain[:5] for name in batch["ids"]]
    assert len(set(epoch)) == 20  # nothing twice within an epoch


def test_batches_hold_what_a_set_on_disk_holds(hub):
    encoders = ToyEncoders()
    pairs = module(hub, encoders=encoders)
    photos, _, root = hub
    disk = build_reader(photos.config(reader="set", path=str(root), pairs=COUNT, validation_pairs=1), "train")
    index = {words.id: i for i, words in enumerate(disk.texts(range(len(disk))))}
    seen = 0
    for batch in batches(pairs, 5):
        for name, source, target in zip(batch["ids"], batch["source"], batch["target"], strict=True):
            if name in index:
                record = disk.load(index[name])
                assert torch.equal(source, encoders.encode_pixels(record.source[None, None])[0])
                assert torch.equal(target, encoders.encode_pixels(record.target[None, None])[0])
                seen += 1
    assert seen > 15


@pytest.mark.parametrize(("stop", "workers"), [(2, 1), (5, 0), (7, 0)])
def test_a_resumed_stream_goes_on_with_the_very_next_batch(hub, stop, workers):
    whole = [batch["ids"] for batch in batches(module(hub), 8)]
    cut = module(hub, workers=workers)
    loader = iter(cut.train_dataloader())
    for number in range(stop):
        if number == 5:
            assert next(loader, None) is None
            loader = iter(cut.train_dataloader())
        next(loader)
    state = json.loads(json.dumps(cut.state_dict()))
    resumed = module(hub, workers=workers)
    resumed.load_state_dict(state)
    assert [batch["ids"] for batch in batches(resumed, 8 - stop)] == whole[stop:]
    # Without the state the position alone is enough, only that what lies before is read again.
    counted = module(hub)
    counted.set_micro_batches(stop)
    assert [batch["ids"] for batch in batches(counted, 8 - stop)] == whole[stop:]


def test_a_resumed_stream_does_not_read_what_lies_before(hub, monkeypatch):
    cut = module(hub, shuffle_buffer=4)
    loader = iter(cut.train_dataloader())
    for _ in range(4):
        next(loader)
    resumed = module(hub, shuffle_buffer=4)
    resumed.load_state_dict(cut.state_dict())
    read = []
    rows = RowStream.file_rows

    def counted(self, *place):
        for row in rows(self, *place):
            read.append(row)
            yield row

    monkeypatch.setattr(RowStream, "file_rows", counted)
    next(iter(resumed.train_dataloader()))
    assert len(read) <= 12  # of thirty: one window to find the place, and one or two for the batch


def test_ranks_share_the_stream_and_end_together(hub):
    together = [batch["ids"] for batch in batches(module(hub), 5)]
    ranks = [[batch["ids"] for batch in module(hub, rank=rank, world=2).train_dataloader()] for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == 5
    assert [a + b for a, b in zip(*ranks, strict=True)] == together


def test_validation_pairs_are_never_trained_on(hub):
    pairs = module(hub, pairs=28)
    held = {name for batch in pairs.val_dataloader() for name in batch["ids"]}
    assert len(held) == 2
    assert pairs.batches_per_epoch == 7
    seen = [name for batch in batches(pairs, 7) for name in batch["ids"]]
    assert len(set(seen)) == 28 and not held & set(seen)


def test_an_epoch_is_no_longer_than_the_stream(hub, caplog):
    with caplog.at_level("INFO", "ivedit"):
        whole = module(hub, pairs=1000)
        assert (whole.batches_per_epoch, whole.training_pairs) == (7, 28)
    assert "data.pairs=1000, but the stream offers 28" in caplog.text
    pairs = module(hub, pairs=40, min_scores={"score": 12}, validation_pairs=2)  # how many stay is not known before
    seen = [name for batch in batches(pairs, 10) for name in batch["ids"]]
    assert len(seen) == 40 and len(set(seen)) == 16  # 18 less 2 for validation
    assert "begins anew within the epoch" in caplog.text


def test_tar_shards_are_streamed_too(tmp_path, hub):
    _, rows, _ = hub
    for shard in range(3):
        part = [{**row, "instruction": row["instruction"][0]} for row in rows[10 * shard : 10 * shard + 10]]
        write_tar(tmp_path / "tars" / f"train-{shard}.tar", tar_members(part))
    whole = [batch["ids"] for batch in batches(module(hub, path=str(tmp_path / "tars")), 8)]
    assert len({name for ids in whole[:5] for name in ids}) == 20
    cut = module(hub, path=str(tmp_path / "tars"))
    loader = iter(cut.train_dataloader())
    for _ in range(3):
        next(loader)
    resumed = module(hub, path=str(tmp_path / "tars"))
    resumed.load_state_dict(json.loads(json.dumps(cut.state_dict())))
    assert [batch["ids"] for batch in batches(resumed, 5)] == whole[3:]


def test_broken_pairs_are_named_and_stood_in_for_within_their_batch(tmp_path, hub, caplog):
    _, rows, _ = hub
    rows = [dict(row) for row in rows]
    for row in rows:
        del row["id"]
    rows[7]["source"] = rows[7]["source"][:100]
    root = write_hub_layout(tmp_path / "hub", rows, {"train": slice(0, COUNT)}, shards=3)
    pairs = module(hub, path=str(root), bad_share=0.2, pairs=28)
    seen = [name for batch in batches(pairs, 7) for name in batch["ids"]]
    assert len(seen) == 28 and len(set(seen)) == 27
    assert "skipped train pair train-00000-of-00003.parquet row 7 (source): is damaged" in caplog.text
    with pytest.raises(IveditError, match=r"data\.bad_share=0\.01"):
        batches(module(hub, path=str(root), bad_share=0.01, pairs=28), 7)


def test_rows_that_a_column_keeps_from_training_are_left_out(tmp_path, hub):
    rows = [{**row, "split": "test" if i % 3 == 0 else "train"} for i, row in enumerate(hub.rows)]
    root = write_hub_layout(tmp_path / "hub", rows, {"train": slice(0, COUNT)}, shards=1)
    pairs = module(hub, path=str(root), pairs=16)
    seen = {name for batch in batches(pairs, 4) for name in batch["ids"]}
    seen |= {name for batch in pairs.val_dataloader() for name in batch["ids"]}
    assert len(seen) == 18 and not {int(name[1:]) % 3 for name in seen} & {0}


def test_a_stream_that_changed_is_not_continued(tmp_path, hub):
    state = module(hub).state_dict()
    with pytest.raises(ConfigError, match=r"another data\.shuffle_buffer"):
        module(hub, shuffle_buffer=9).load_state_dict(state)
    _, rows, _ = hub
    other = write_hub_layout(tmp_path / "hub", rows, {"train": slice(0, COUNT)}, shards=2)
    with pytest.raises(ConfigError, match="another list of files"):
        module(hub, path=str(other)).load_state_dict(state)
    with pytest.raises(ConfigError, match="number of training pairs"):
        module(hub, pairs=16).load_state_dict(state)


def test_what_cannot_be_streamed_or_is_not_used_says_so(tmp_path, hub, caplog):
    photos, _, _ = hub
    photos.write("t.jsonl")
    with pytest.raises(ConfigError, match="cannot be streamed"):
        module(hub, path=str(photos.root / "t.jsonl")).setup()
    for split, file in (("train", 7), ("valid", 2), ("test", 1)):
        write_parquet(tmp_path / "set" / f"{split}.parquet", hub.rows[:file])
    caplog.set_level("INFO", "ivedit")
    module(hub, path=str(tmp_path / "set"), pairs=4).setup()
    assert "valid.parquet is not used" in caplog.text and "data.validation_split=validation takes" in caplog.text
    members = tar_members([{**row, "instruction": "x"} for row in hub.rows[:3]])
    mixed = [(name.replace("00001.source.png", "00001.source.jpg"), data) for name, data in members]
    message = r"'mixed.tar' cannot be streamed, because its samples differ in kinds.*set data\.streaming=false"
    with pytest.raises(ConfigError, match=message):
        module(hub, path=str(write_tar(tmp_path / "mixed.tar", mixed))).setup()
    assert len(build_reader(module(hub, path=str(tmp_path / "mixed.tar"), streaming=False).cfg, "train")) == 2
    with pytest.raises(ConfigError, match="no column 'o_score'"):
        module(hub, min_scores={"o_score": 1}).setup()
    with pytest.raises(ConfigError, match=r"columns\.source"):
        module(hub, columns={"source": "before"}).setup()
    with pytest.raises(ConfigError, match=r"needs 4 training pairs.* has 3 and 2$"):
        module(hub, pairs=3).setup()
    with pytest.raises(ConfigError, match=r"has 0 and 30; lower data\.validation_pairs"):
        module(hub, validation_pairs=512).setup()
    assert isinstance(module(hub), StreamDataModule) and not isinstance(module(hub, streaming=False), StreamDataModule)
