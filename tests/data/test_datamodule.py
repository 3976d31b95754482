import json
import multiprocessing
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ivedit.data.datamodule import PairDataModule
from ivedit.data.record import PairReader, PairRecord, PairTexts, readers, register_reader
from ivedit.data.shards import Shards
from ivedit.errors import ConfigError, IveditError

from .conftest import LENGTH, WIDTH, ToyEncoders, sprite_config


def _module(cfg, encoders=None, **where) -> PairDataModule:
    encoders = encoders or ToyEncoders()
    return PairDataModule(cfg, encoders.encode_pixels, encoders.encode_text, encoders.fingerprint, **where)


def _same(a: dict, b: dict) -> bool:
    texts = ("text_target", "text_gate", "text_source")
    return (
        a["ids"] == b["ids"]
        and all(torch.equal(a[name], b[name]) for name in ("source", "target"))
        and all(torch.equal(a[t].states, b[t].states) and torch.equal(a[t].mask, b[t].mask) for t in texts)
    )


def _ids(batches) -> list[str]:
    return [name for batch in batches for name in batch["ids"]]


def _busy(**data):
    """Every random choice switched on."""
    cfg = sprite_config(null_edits=0.2, flip=0.5, **data)
    cfg.text.gate, cfg.text.dropout = "shuffled", 0.3
    return cfg


def test_a_batch_holds_latents_and_texts_of_its_pairs(config):
    encoders = ToyEncoders()
    cfg = config()
    cfg.text.dropout = 0.0
    module = _module(cfg, encoders)
    loader = module.train_dataloader()
    assert len(loader) == module.batches_per_epoch == 6
    batches = list(loader)
    assert len(batches) == 6
    assert sorted(_ids(batches)) == [f"train-{i:06d}" for i in range(24)]
    reader = module.reader("train")
    batch = batches[2]
    assert batch["source"].shape == batch["target"].shape == (4, 192, 1, 8, 8)
    assert batch["text_gate"].states.shape == (4, LENGTH, WIDTH)
    for row, name in enumerate(batch["ids"]):
        record = reader.read(int(name[-6:]))
        for what in ("source", "target"):
            expected = encoders.encode_pixels(getattr(record, what)[None, None])[0]
            assert torch.equal(batch[what][row], expected)
        words = encoders.encode_text([record.instruction])
        assert torch.equal(batch["text_target"].states[row], words.states[0])
        assert batch["text_source"].lengths[row] == 1  # the empty text: its end mark alone


def test_null_edits_have_the_source_as_target_and_empty_texts():
    module = _module(sprite_config(null_edits=1.0))
    for batch in module.train_dataloader():
        assert torch.equal(batch["source"], batch["target"])
        assert batch["text_target"].lengths.tolist() == batch["text_gate"].lengths.tolist() == [1] * 4
    for batch in module.val_dataloader():
        assert not torch.equal(batch["source"], batch["target"])


def test_validation_is_fixed_complete_and_in_order():
    module = _module(_busy())
    first, second = list(module.val_dataloader()), list(module.val_dataloader())
    assert [len(batch["ids"]) for batch in first] == [4, 2] and len(module.val_dataloader()) == 2
    assert _ids(first) == [f"val-{i:06d}" for i in range(6)]
    assert all(_same(a, b) for a, b in zip(first, second, strict=True))


def test_epochs_differ_and_repeat_exactly_in_another_run():
    module, again = _module(_busy()), _module(_busy())
    epochs = [list(module.train_dataloader()) for _ in range(3)]
    repeated = [list(again.train_dataloader()) for _ in range(3)]
    assert all(_same(a, b) for x, y in zip(epochs, repeated, strict=True) for a, b in zip(x, y, strict=True))
    assert epochs[0][0]["ids"] != epochs[1][0]["ids"] != epochs[2][0]["ids"]


@pytest.fixture(scope="module")
def uninterrupted() -> list[dict]:
    module = _module(_busy())
    return [batch for _ in range(3) for batch in module.train_dataloader()]


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(done=st.integers(0, 17), by_state=st.booleans())
def test_any_position_continues_with_the_very_next_batch(uninterrupted, done, by_state):
    module = _module(_busy())
    if by_state:
        first = _module(_busy())
        left = done
        while left:
            for _, _ in zip(range(left), first.train_dataloader(), strict=False):
                left -= 1
        module.load_state_dict(first.state_dict())
    else:
        module.set_micro_batches(done)
    rest = [batch for _ in range(3 - done // 6) for batch in module.train_dataloader()]
    assert len(rest) == 18 - done
    assert all(_same(a, b) for a, b in zip(rest, uninterrupted[done:], strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_a_stream_without_cache_is_as_exact(uninterrupted, workers):
    module = _module(_busy(cache="none", workers=workers))
    module.set_position(1, 4)
    rest = [batch for _ in range(2) for batch in module.train_dataloader()]
    assert all(_same(a, b) for a, b in zip(rest, uninterrupted[10:], strict=True))


def test_the_state_counts_batches_received_not_batches_read_ahead():
    module = _module(_busy(cache="none", workers=2))
    stream = iter(module.train_dataloader())
    for done in range(1, 4):
        next(stream)
        assert (module.state_dict()["epoch"], module.state_dict()["batch"]) == (0, done)


def test_ranks_share_the_pairs_and_see_together_what_one_sees():
    cfg = _busy()
    one = list(_module(cfg).train_dataloader())
    half = _busy()
    half.train.batch_size = 2
    ranks = [list(_module(half, rank=rank, world=2).train_dataloader()) for rank in range(2)]
    assert [len(part) for part in ranks] == [6, 6]
    for whole, left, right in zip(one, *ranks, strict=True):
        assert whole["ids"] == left["ids"] + right["ids"]
        assert torch.equal(whole["target"], torch.cat([left["target"], right["target"]]))
        gates = torch.cat([left["text_gate"].states, right["text_gate"].states])
        assert torch.equal(whole["text_gate"].states, gates)
    val = [_ids(_module(half, rank=r, world=2).val_dataloader()) for r in range(2)]
    assert len(val[0]) == len(val[1]) == 3 and not set(val[0]) & set(val[1])


def test_ranks_that_share_a_disk_cache_give_the_same_as_one(tmp_path):
    reference = list(_module(_busy(), rank=1, world=2).train_dataloader())
    cfg = _busy(cache="disk", cache_dir=str(tmp_path))
    found = list(_module(cfg, rank=1, world=2).train_dataloader())
    assert all(_same(a, b) for a, b in zip(found, reference, strict=True))


class Failing(ToyEncoders):
    def encode_pixels(self, pixels):
        raise IveditError("this rank cannot encode")


def _one_rank(rank: int, world: int, here: int, place: Path, failing: int | None) -> None:
    """Fill the cache of this rank's machine (`here` ranks have one disk) and write down what it took."""
    local = {"LOCAL_RANK": rank % here, "LOCAL_WORLD_SIZE": here}
    os.environ.update({k: str(v) for k, v in {"RANK": rank, "WORLD_SIZE": world, **local}.items()})
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=world)
    encoders = Failing() if rank == failing else ToyEncoders()
    cfg = _busy(cache="disk", cache_dir=str(place / f"disk-{rank // here}"))
    cfg.train.batch_size = 2
    module = _module(cfg, encoders, rank=rank, world=world)
    ids = _ids(module.train_dataloader())
    (place / f"rank-{rank}.json").write_text(json.dumps([encoders.images, encoders.texts, ids]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _ranks(place: Path, world: int, here: int, failing: int | None = None) -> list[int | None]:
    """Run so many ranks, `here` on each machine; returns how they ended."""
    start = multiprocessing.get_context("fork").Process
    ranks = [start(target=_one_rank, args=(rank, world, here, place, failing)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=60)
    ended = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    return ended


def _entries(cache: Path) -> dict[str, torch.Tensor]:
    """Every latent and text of a cache on disk by its key."""
    found: dict[str, torch.Tensor] = {}
    for kind in ("latents", "texts"):
        (folder,) = cache.glob(f"*/{kind}")
        shards = Shards(folder)
        for key in shards._where:
            shard, row = shards.place(key)
            if kind == "latents":
                found[key] = shards.read(shard, "latents", row, row + 1)
                continue
            first, last = shards.read(shard, "starts", row, row + 2).tolist()
            found[key] = shards.read(shard, "states", first, last)
    return found


@pytest.fixture
def small_chunks(monkeypatch):
    """Four pairs or five texts are encoded at once."""
    monkeypatch.setattr("ivedit.data.fill._CHUNK_PIXELS", {"cpu": 64 * 64 * 4})
    monkeypatch.setattr("ivedit.data.cache._TEXT_ELEMENTS", LENGTH * WIDTH * 5)


@pytest.fixture
def one(small_chunks, tmp_path) -> tuple[dict[str, torch.Tensor], ToyEncoders]:
    """The cache of one rank, and its encoders."""
    encoders = ToyEncoders()
    _module(_busy(cache="disk", cache_dir=str(tmp_path / "one")), encoders).setup()
    return _entries(tmp_path / "one"), encoders


@pytest.mark.parametrize(("world", "here"), [(2, 2), (4, 2)], ids=["one disk", "a disk for each machine"])
def test_ranks_share_what_is_missing_and_every_disk_ends_with_the_cache_of_one_rank(tmp_path, one, world, here):
    whole, alone = one
    machines = world // here
    assert _ranks(tmp_path, world, here) == [0] * world
    told = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(world)]
    images, texts, ids = (list(part) for part in zip(*told, strict=True))
    assert sum(images) == machines * alone.images == machines * 2 * (24 + 24 + 6)  # plain, mirrored (training only)
    assert max(images) - min(images) <= 4 * 4 * machines  # a chunk: source and target, plain and mirrored
    asked = Counter(text for part in texts for text in part[1:])  # the first of each rank is the probe of its encoder
    assert asked == {text: machines * count for text, count in Counter(alone.texts[1:]).items()}
    assert all(len(part) > 1 for part in texts)
    assert len({name for part in ids for name in part}) == 24
    for machine in range(machines):
        found = _entries(tmp_path / f"disk-{machine}")
        assert found.keys() == whole.keys() and all(torch.equal(found[key], whole[key]) for key in whole)


def test_a_rank_that_cannot_encode_leaves_no_other_waiting(tmp_path, small_chunks):
    assert _ranks(tmp_path, 2, 2, failing=1) == [1, 1]
    assert not list(tmp_path.glob("rank-*.json"))


def test_what_cannot_be_continued_is_refused_by_name():
    module = _module(_busy())
    state = module.state_dict()
    with pytest.raises(ConfigError) as caught:
        module.load_state_dict({**state, "batch_size": 8, "world": 2})
    assert len(caught.value.problems) == 2 and "train.batch_size" in str(caught.value)
    for epoch, batch in ((-1, 0), (0, 7), (0, -1)):
        with pytest.raises(ValueError, match="no batch"):
            module.set_position(epoch, batch)
    module.set_position(0, 6)
    assert (module.position.epoch, module.position.batch) == (1, 0)


def test_too_few_pairs_for_a_batch_are_refused(config):
    with pytest.raises(ConfigError, match="needs 32 training pairs, but there are 24"):
        module = _module(config(), world=8, rank=0)
        module.setup()


def test_a_table_without_its_columns_is_told_before_a_text_encoder_is_read(photos):
    encoders, cfg = ToyEncoders(), photos.config(columns={"source": "before"})
    with pytest.raises(ConfigError, match=r"data\.columns\.source: .* has no column 'before'"):
        _module(cfg, encoders, device="cpu").setup()
    assert encoders.texts == []


def test_inference_mode_in_an_encoder_does_not_spoil_training(config):
    class Inference(ToyEncoders):
        @torch.inference_mode()
        def encode_pixels(self, pixels):
            return super().encode_pixels(pixels)

        @torch.inference_mode()
        def encode_text(self, texts):
            return super().encode_text(texts)

    for cache in ("memory", "none"):
        batch = next(iter(_module(config(cache=cache), Inference()).train_dataloader()))
        weight = torch.ones(1, requires_grad=True)
        (batch["source"] * weight).square().sum().backward()
        (batch["text_source"].states * weight).square().sum().backward()


def test_broken_photographs_are_replaced_alike_with_and_without_cache(photos):
    (photos.root / photos.rows[4]["source"]).unlink()
    (photos.root / photos.rows[5]["target"]).write_bytes(b"GIF89a broken")
    batches = [
        list(_module(photos.config(cache=cache, workers=workers, bad_share=0.5)).train_dataloader())
        for cache, workers in (("memory", 0), ("memory", 2), ("none", 0), ("none", 2))
    ]
    for other in batches[1:]:
        assert all(_same(a, b) for a, b in zip(batches[0], other, strict=True))
    assert not {"p4", "p5"} & {name for batch in batches[0] for name in batch["ids"]}


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_run_stops_above_the_share_of_broken_pairs(photos, cache):
    for row in photos.rows[:4]:
        (photos.root / row["target"]).write_bytes(b"")
    module = _module(photos.config(cache=cache, bad_share=0.1))
    with pytest.raises(IveditError, match=r"unusable, more than data.bad_share=0.1 allows.*is empty"):
        module.setup()
        list(module.train_dataloader())


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_batches_are_made_on_the_gpu(tmp_path, cache):
    cfg = _busy(cache=cache, cache_dir=str(tmp_path))
    for batch, on_cpu in zip(
        _module(cfg, device="cuda").train_dataloader(), _module(_busy()).train_dataloader(), strict=True
    ):
        assert batch["ids"] == on_cpu["ids"]
        assert {batch[name].device.type for name in ("source", "target", "text_gate", "text_source")} == {"cuda"}
        # The GPU may round a pixel in a tie to the other side: one step of 8 bits.
        assert (batch["target"].cpu() - on_cpu["target"]).abs().max() < 1.1 / 255
        assert torch.equal(batch["text_gate"].states.cpu(), on_cpu["text_gate"].states)


class _Stripes(PairReader):
    """A reader from outside the package: float pixels of its own, one pair of which is unusable."""

    def __init__(self, cfg, split, *, device="cpu"):
        super().__init__(seed=cfg.seed)
        self.count = 8 if split == "train" else 2

    def __len__(self):
        return self.count

    def texts(self, indices):
        return [PairTexts(f"s{i}", (f"shift by {i}",)) for i in indices]

    def load(self, index):
        from ivedit.data.record import BadRecord

        if index == 5:
            raise BadRecord("s5", "has no stripes")
        source = torch.linspace(0, 1, 16).expand(3, 16, 16)
        return PairRecord(f"s{index}", source, source.roll(index, -1), f"shift by {index}")

    def keys(self, indices):
        return [f"stripes {i}" for i in indices]


def test_a_plugins_reader_needs_only_the_four_basic_methods(config):
    if "stripes" not in readers:
        register_reader("stripes")(_Stripes)
    cfg = config(reader="stripes", height=16, width=16, bad_share=0.2)
    cfg.train.batch_size = 8
    batch = next(iter(_module(cfg).train_dataloader()))
    assert sorted(batch["ids"]) == ["s0", "s1", "s2", "s3", "s4", "s6", "s6", "s7"]
    assert np.isclose(batch["source"][0].max(), 1.0)
