"""A run's encoders are loaded once, to fill the cache; the transformer comes after them; a full cache needs neither."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import multiprocessing
import os
import re
import shutil
import weakref
from pathlib import Path

import pytest
import torch

from ivedit.backbone import Backbone
from ivedit.backbone.parts import bring, drop
from ivedit.config import load
from ivedit.errors import IveditError
from ivedit.run import main
from ivedit.training import encoders
from ivedit.training.encoders import Encoders
from tests.backbone.tiny import save_pipeline, tiny_backbone

SETTINGS = [
    "data.pairs=6", "data.validation_pairs=2", "data.height=16", "data.width=16", "data.operations=[recolour]",
    "train.batch_size=2", "train.max_steps=3", "train.log_every=1", "train.warmup_steps=1", "train.accelerator=cpu",
    "train.precision=32-true", "train.ema=0.5", "editor.width=24", "editor.mlp=0", "flow.draws_per_pair=1",
    "evaluation.enabled=false", "tracking.kind=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("wan") / "tiny", blocks=2)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(folder: Path, *more: str) -> tuple[list[str], list[dict]]:
    """Run and return which parts were loaded, in order, and the logged metrics without their times."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["experiment=imvideoedit", f"backbone={folder}", *SETTINGS, *more]) == 0
    text = said.getvalue()
    run = Path(text.rpartition("run folder: ")[2].splitlines()[0])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = [{k: v for k, v in row.items() if "loss" in k or k == "step"} for row in rows]
    return re.findall(r"^loading the (.+) of ", text, re.M), [row for row in measured if len(row) > 1]


@pytest.fixture(scope="module")
def first(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str], list[dict]]:
    """The setting of a cache on disk, filled by a first run, and what that run loaded and logged."""
    place = tmp_path_factory.mktemp("first")
    cache = f"data.cache_dir={place / 'cache'}"
    return (cache, *start(folder, "data.cache=disk", cache, f"output_dir={place}"))


def test_encoders_come_first_and_leave_and_a_second_start_loads_the_transformer_alone(folder, first, here):
    cache, loaded, losses = first
    assert loaded == ["text encoder", "vae", "transformer"]
    again, same = start(folder, "data.cache=disk", cache)
    assert again == ["transformer"]
    each_time, streamed = start(folder, "data.cache=none")
    assert sorted(each_time) == sorted(loaded)
    assert len(losses) >= 3 and losses == same == streamed


def test_other_words_load_only_the_encoder_they_need(folder, first, here):
    longer, _ = start(folder, "data.cache=disk", first[0], "text.length=9")
    assert longer == ["text encoder", "transformer"]


def test_another_encoder_or_another_type_of_its_weights_is_another_fingerprint(folder, here, tmp_path):
    def fingerprint(path: Path, dtype: str = "float32") -> str:
        cfg = load("imvideoedit", f"backbone={path}", "data.cache=disk")
        return Encoders(cfg, Backbone.load(path, dtype=dtype, components=())).fingerprint

    plain = fingerprint(folder)
    assert fingerprint(folder) == plain != fingerprint(folder, "bfloat16")
    memo = json.loads((here / "cache" / "encoders.json").read_text())
    assert len(memo) == len(set(memo)) and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in memo.values())
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(copy) == plain  # what counts is what the files hold
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(copy) != plain
    (here / "cache" / "encoders.json").write_text("{damaged")
    assert fingerprint(folder) == plain


def _recognise(rank: int, folder: Path, place: Path) -> None:
    """One of two ranks of a machine, which writes down the files that it has read whole, and the fingerprint."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=2)
    read: list[str] = []
    digest = encoders.file_digest
    encoders.file_digest = lambda path: read.append(str(path)) or digest(path)
    cfg = load("imvideoedit", f"backbone={folder}", "data.cache=disk", f"data.cache_dir={place / 'cache'}")
    found = Encoders(cfg, Backbone.load(folder, components=())).fingerprint
    (place / f"{rank}.json").write_text(json.dumps([read, found]))
    torch.distributed.destroy_process_group()


def test_the_encoders_files_are_read_by_one_rank_of_a_machine(folder, tmp_path):
    start = multiprocessing.get_context("fork").Process
    ranks = [start(target=_recognise, args=(rank, folder, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=60)
    assert [process.exitcode for process in ranks] == [0, 0]
    (read, first), (again, second) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert read and not again and first == second


def test_a_dropped_part_frees_its_memory_and_comes_back_the_same(folder):
    backbone = Backbone.load(folder, components=())
    assert backbone.spec.blocks == 2 and backbone.transformer is None
    bring(backbone, "text_encoder", "vae")
    states = backbone.encode_text(["make the circle red"]).states
    held = weakref.ref(backbone.text_encoder)
    drop(backbone, "text_encoder", "vae")
    gc.collect()
    assert held() is None and backbone.vae is None
    bring(backbone, "transformer", "text_encoder")
    assert torch.equal(backbone.encode_text(["make the circle red"]).states, states)
    assert not any(w.requires_grad for w in backbone.parameters())
    assert all(
        torch.equal(a, b)
        for a, b in zip(backbone.transformer.parameters(), Backbone.load(folder).transformer.parameters(), strict=True)
    )


def test_a_backbone_made_in_memory_cannot_bring_what_it_never_had():
    backbone = tiny_backbone(blocks=1)
    drop(backbone, "vae")
    with pytest.raises(IveditError, match="made in memory without its vae"):
        bring(backbone, "vae")


def test_an_editor_that_cannot_be_built_is_refused_before_anything_is_encoded(folder, here, capsys):
    assert main(["experiment=imvideoedit", f"backbone={folder}", *SETTINGS, "editor.width=20"]) == 2
    said = capsys.readouterr()
    assert "editor.width" in said.err and "loading the" not in said.out


def test_a_transformer_that_did_not_arrive_is_told_before_anything_is_encoded(folder, here, tmp_path, capsys):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert main(["experiment=imvideoedit", f"backbone={broken}", *SETTINGS]) == 1
    said = capsys.readouterr()
    assert "transformer holds no .safetensors weights" in said.err and "loading the" not in said.out
