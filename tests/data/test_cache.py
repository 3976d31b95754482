import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ivedit.data.cache import DiskLatents, DiskTexts, MemoryLatents, MemoryTexts
from ivedit.data.datamodule import PairDataModule
from ivedit.data.shards import Shards, entry_key
from ivedit.data.text import TextStates
from ivedit.errors import IveditError

from .conftest import ToyEncoders


def _module(cfg, encoders) -> PairDataModule:
    module = PairDataModule(cfg, encoders.encode_pixels, encoders.encode_text, encoders.fingerprint)
    module.setup()
    return module


def _all(module: PairDataModule) -> dict[str, torch.Tensor]:
    """Source and target latents of the first epoch by name."""
    found = {}
    for batch in module.train_dataloader():
        for name, source, target in zip(batch["ids"], batch["source"], batch["target"], strict=True):
            found[name] = torch.stack([source, target])
    return found


@pytest.fixture
def cached(config, tmp_path):
    """A small sprite set with a cache on disk."""
    return lambda **data: config(cache="disk", cache_dir=str(tmp_path / "cache"), **data)


def test_a_second_run_encodes_nothing_and_gives_the_same(cached):
    first, second = ToyEncoders(), ToyEncoders()
    once = _all(_module(cached(), first))
    again = _all(_module(cached(), second))
    assert first.images == 2 * (24 + 6) and second.images == 0
    assert second.texts == [""]  # the probe for device and length
    assert once.keys() == again.keys() and all(torch.equal(once[name], again[name]) for name in once)


def test_more_pairs_encode_only_the_new_ones(cached):
    _module(cached(), ToyEncoders())
    more = ToyEncoders()
    _module(cached(pairs=30), more)
    assert more.images == 2 * 6


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
@pytest.mark.parametrize("extra", [{}, {"null_edits": 0.5, "flip": 0.5}])
def test_every_kind_of_cache_gives_the_same_batches(config, tmp_path, cache, extra):
    reference = _module(config(cache="memory", **extra), ToyEncoders())
    other = _module(config(cache=cache, cache_dir=str(tmp_path), **extra), ToyEncoders())
    for loader in ("train_dataloader", "val_dataloader"):
        batches = list(zip(getattr(reference, loader)(), getattr(other, loader)(), strict=True))
        assert batches
        for a, b in batches:
            assert a["ids"] == b["ids"]
            assert torch.equal(a["source"], b["source"]) and torch.equal(a["target"], b["target"])
            for text in ("text_target", "text_gate", "text_source"):
                assert torch.equal(a[text].states, b[text].states) and torch.equal(a[text].mask, b[text].mask)


def test_another_encoder_never_gets_an_old_entry(cached):
    old, new = ToyEncoders(), ToyEncoders(scale=2.0)
    once, again = _all(_module(cached(), old)), _all(_module(cached(), new))
    assert new.images == old.images and len(new.texts) == len(old.texts)
    assert all(torch.equal(2 * once[name], again[name]) for name in once)


def test_another_transform_never_gets_an_old_entry(photos, tmp_path):
    where = {"cache": "disk", "cache_dir": str(tmp_path / "cache")}
    _module(photos.config(**where), ToyEncoders())
    again = ToyEncoders()
    # As many pixels in another shape would fit the same tensors; only the key can tell.
    module = _module(photos.config(**where, height=48, width=32), again)
    assert again.images == 2 * 12
    assert next(iter(module.train_dataloader()))["source"].shape[-2:] == (6, 4)


def test_changed_pixels_never_get_an_old_entry_even_with_size_and_time_kept(photos, tmp_path):
    where = {"cache": "disk", "cache_dir": str(tmp_path / "cache")}
    bmp = photos.root / "bilder/0.bmp"
    Image.open(photos.root / "bilder/0.png").save(bmp)
    photos.rows[0]["source"] = "bilder/0.bmp"
    cfg = photos.config(**where)
    cfg.train.batch_size = 1
    before = _all(_module(cfg, ToyEncoders()))
    stat = bmp.stat()
    time.sleep(0.01)
    Image.open(bmp).point(lambda value: 255 - value).save(bmp)
    os.utime(bmp, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert bmp.stat().st_size == stat.st_size and bmp.stat().st_mtime_ns == stat.st_mtime_ns
    encoders = ToyEncoders()
    after = _all(_module(cfg, encoders))
    assert encoders.images == 2
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["p0"]


def test_a_changed_instruction_is_encoded_anew(photos, tmp_path):
    where = {"cache": "disk", "cache_dir": str(tmp_path / "cache")}
    _module(photos.config(**where), ToyEncoders())
    photos.rows[1]["instruction"] = "something else"
    encoders = ToyEncoders()
    _module(photos.config(**where), encoders)
    assert encoders.images == 0 and encoders.texts == ["", "something else"]


def test_another_padded_length_is_another_entry(cached):
    class Longer(ToyEncoders):
        def encode_text(self, texts):
            return super().encode_text(texts).pad_to(20)

    _module(cached(), ToyEncoders())
    longer = Longer()
    module = _module(cached(), longer)
    assert len(longer.texts) > 2 and longer.images == 0
    assert next(iter(module.train_dataloader()))["text_gate"].states.shape[1] == 20


def test_broken_pairs_stay_broken_when_the_rest_is_cached(photos, tmp_path):
    (photos.root / photos.rows[3]["source"]).write_bytes(b"")
    cfg = photos.config(cache="disk", cache_dir=str(tmp_path / "cache"), bad_share=0.5)
    first, second = _module(cfg, ToyEncoders()), _module(cfg, ToyEncoders())
    assert _all(first).keys() == _all(second).keys()
    assert "p3" not in _all(second)
    cfg.data.bad_share = 0.01
    with pytest.raises(IveditError, match=r"p3 \(bilder/3.png\): is empty"):
        _module(cfg, ToyEncoders())


class Crash(Exception):
    pass


def test_filling_goes_on_after_a_crash(cached, config, monkeypatch):
    monkeypatch.setattr("ivedit.data.fill._CHUNK_PIXELS", {"cpu": 64 * 64 * 4})
    monkeypatch.setattr("ivedit.data.cache._SHARD_BYTES", 1)

    class Dying(ToyEncoders):
        def encode_pixels(self, pixels):
            if self.images >= 24:
                raise Crash
            return super().encode_pixels(pixels)

    with pytest.raises(Crash):
        _module(cached(), Dying())
    rest = ToyEncoders()
    module = _module(cached(), rest)
    assert rest.images == 2 * (24 + 6) - 24
    monkeypatch.undo()
    reference = _all(_module(config(cache="memory"), ToyEncoders()))
    found = _all(module)
    assert all(torch.equal(found[name], reference[name]) for name in reference)


def test_an_image_that_encodes_to_nonsense_stops_the_run_by_name(config):
    class Broken(ToyEncoders):
        def encode_pixels(self, pixels):
            latents = super().encode_pixels(pixels)
            latents[5] = float("nan")
            return latents

    with pytest.raises(IveditError, match="train-000005 is not finite"):
        _module(config(), Broken())


def test_a_cache_folder_that_cannot_be_made_is_a_plain_error(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IveditError, match=r"data\.cache_dir"):
        _module(config(cache="disk", cache_dir=str(tmp_path / "file/cache")), ToyEncoders())


def test_a_damaged_shard_is_said_and_encoded_again(cached, caplog):
    once = _all(_module(cached(), ToyEncoders()))
    shards = sorted(Path(cached().data.cache_dir).rglob("latents/*.safetensors"))
    shards[0].write_bytes(shards[0].read_bytes()[:-7])
    encoders = ToyEncoders()
    again = _all(_module(cached(), encoders))
    assert encoders.images > 0 and "is damaged" in caplog.text
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_leftovers_of_killed_writers_are_ignored_and_removed_when_old(tmp_path):
    (tmp_path / ".tmp-1-new").write_bytes(b"x")
    (tmp_path / ".tmp-1-old").write_bytes(b"x")
    os.utime(tmp_path / ".tmp-1-old", (0, 0))
    assert len(Shards(tmp_path)) == 0
    assert [path.name for path in tmp_path.iterdir()] == [".tmp-1-new"]


def _write_some(folder: str, worker: int) -> int:
    store = DiskLatents(Shards(Path(folder)))
    for i in range(20):
        row = (worker * 7 + i) % 20
        store.add([f"k{row}"], torch.full((1, 2, 1, 2, 2), float(row)))
        store.flush()
    store.shards.refresh()
    store.finish([f"k{i}" for i in range(20)], torch.device("cpu"))
    return int(store.gather(np.arange(20))[:, 0, 0, 0, 0].sum())


def test_processes_may_fill_and_read_one_folder_at_once(tmp_path):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.starmap(_write_some, [(str(tmp_path), i) for i in range(3)]) == [190] * 3
    assert len(Shards(tmp_path)) == 20 and not list(tmp_path.glob(".tmp-*"))


def test_keys_do_not_run_into_each_other():
    assert entry_key("ab", "c") != entry_key("a", "bc") != entry_key("abc") != entry_key("ab", "c", "")


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=9).filter(any),
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_texts_come_back_padded_as_they_went_in(tmp_path_factory, lengths, data, dtype):
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    texts = TextStates((torch.randn(len(lengths), 5, 3) * mask[..., None]).to(dtype), mask)
    keys = [f"k{i}" for i in range(len(lengths))]
    cut = data.draw(st.integers(0, len(lengths)))
    order = data.draw(st.permutations(range(len(lengths))))
    wanted = np.array(data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, max_size=6)))
    for store in (MemoryTexts(), DiskTexts(Shards(tmp_path_factory.mktemp("shards")))):
        for begin, end in ((0, cut), (cut, len(lengths))):
            if end > begin:
                store.add(keys[begin:end], texts[begin:end])
        store.finish([keys[i] for i in order], 5, torch.device("cpu"))
        back = store.gather(wanted)
        expected = texts[[order[i] for i in wanted]]
        assert back.states.dtype == dtype
        assert torch.equal(back.states, expected.states) and torch.equal(back.mask, expected.mask)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_texts_that_wait_on_the_host_are_padded_on_the_gpu(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("ivedit.data.cache._fits", lambda size, device: False)
    mask = torch.arange(7) < torch.tensor([3, 0, 7, 1])[:, None]
    texts = TextStates((torch.randn(4, 7, 3) * mask[..., None]).bfloat16(), mask)
    store = MemoryTexts() if kind == "memory" else DiskTexts(Shards(tmp_path))
    store.add(["a", "b", "c", "d"], texts)
    store.finish(["d", "c", "b", "a"], 7, torch.device("cuda"))
    back = store.gather(np.array([0, 3, 2, 1, 1]))
    expected = texts[[3, 0, 1, 2, 2]]
    assert back.device.type == back.mask.device.type == "cuda"
    assert torch.equal(back.states.cpu(), expected.states) and torch.equal(back.mask.cpu(), expected.mask)


def test_latents_come_back_in_the_order_of_their_keys():
    latents = torch.randn(6, 2, 1, 3, 3)
    store = MemoryLatents()
    store.add(["a", "b", "c"], latents[:3])
    store.add(["d", "b", "e"], latents[3:])  # b again: another row of a table with the same images
    store.finish(["e", "b", "a"], torch.device("cpu"))
    assert torch.equal(store.gather(np.array([0, 2, 1, 1])), latents[[5, 0, 4, 4]])


@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(9)), fits=st.booleans(), disk=st.booleans())
def test_latents_of_several_shapes_come_back_by_row(tmp_path_factory, order, fits, disk):
    latents = [torch.randn(2, 1, 3 + i % 3, 5 - i % 3) for i in range(9)]
    store = DiskLatents(Shards(tmp_path_factory.mktemp("shards"))) if disk else MemoryLatents()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ivedit.data.cache._fits", lambda size, device: fits)
        for first, second in ((0, 3), (1, 4), (2, 5), (6, 6), (7, 7), (8, 8)):
            chunk = sorted({first, second})
            store.add([f"k{i}" for i in chunk], torch.stack([latents[i] for i in chunk]))
        store.finish([f"k{i}" for i in order], torch.device("cpu"))
    for shape in range(3):
        rows = np.array([row for row, i in enumerate(order) if i % 3 == shape])
        assert torch.equal(store.gather(rows), torch.stack([latents[order[row]] for row in rows]))
