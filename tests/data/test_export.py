import csv
import json
import subprocess
import sys

import pytest
import torch

from ivedit.data.datamodule import PairDataModule
from ivedit.data.export import export_pairs, main
from ivedit.data.record import build_reader
from ivedit.errors import IveditError

from .conftest import ToyEncoders, sprite_config


def _exported(tmp_path, format):
    cfg = sprite_config()
    train, val = build_reader(cfg, "train"), build_reader(cfg, "val")
    folder = tmp_path / "set"
    table = export_pairs(train, folder, 24, format, validation=val, validation_count=6)
    return cfg, sprite_config(reader="folder", path=str(folder), table=table.name)


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_exported_sprites_read_back_are_the_same_records(tmp_path, format):
    cfg, exported = _exported(tmp_path, format)
    for split in ("train", "val"):
        original, read = build_reader(cfg, split), build_reader(exported, split)
        assert len(original) == len(read)
        assert original.texts(range(len(original))) == read.texts(range(len(read)))
        for index in range(len(original)):
            a, b = original.read(index, 3), read.read(index, 3)
            assert torch.equal(a.source, b.source) and torch.equal(a.target, b.target)
            assert torch.equal(a.mask, b.mask) and a.instruction == b.instruction


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_exported_sprites_give_the_same_batches_to_the_bit(tmp_path, cache):
    modules = []
    for cfg in _exported(tmp_path, "csv"):
        cfg.data.cache, cfg.data.cache_dir = cache, str(tmp_path / "cache")
        cfg.data.null_edits, cfg.text.gate = 0.2, "shuffled"
        encoders = ToyEncoders()
        modules.append(PairDataModule(cfg, encoders.encode_pixels, encoders.encode_text, encoders.fingerprint))
    sprites, folder = modules
    streams = [
        [batch for _ in range(2) for batch in module.train_dataloader()] + list(module.val_dataloader())
        for module in (sprites, folder)
    ]
    assert len(streams[0]) == 14
    for a, b in zip(*streams, strict=True):
        assert a["ids"] == b["ids"]
        assert torch.equal(a["source"], b["source"]) and torch.equal(a["target"], b["target"])
        assert torch.equal(a["text_gate"].states, b["text_gate"].states)
        assert torch.equal(a["text_target"].states, b["text_target"].states)


def test_photographs_with_several_instructions_survive_the_way(tmp_path, photos):
    photos.rows[0]["instruction"] = ["grey", "make it grey"]
    cfg = photos.config()
    reader = build_reader(cfg, "train")
    for format in ("csv", "jsonl"):
        table = export_pairs(reader, tmp_path / format, len(reader), format)
        rows = (
            list(csv.DictReader(table.open(newline="")))
            if format == "csv"
            else [json.loads(line) for line in table.open()]
        )
        first = next(row for row in rows if row["id"] == "p0")["instruction"]
        assert (json.loads(first) if format == "csv" else first) == ["grey", "make it grey"]


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    reader = build_reader(sprite_config(), "train")
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(IveditError, match="not an empty folder"):
        export_pairs(reader, tmp_path, 2)
    with pytest.raises(ValueError, match="cannot export 25"):
        export_pairs(reader, tmp_path / "new", 25)
    with pytest.raises(ValueError, match="format"):
        export_pairs(reader, tmp_path / "new", 2, "xml")
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


def test_the_command_writes_a_folder_and_says_how_to_train_from_it(tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["--count", "5", "--validation", "2", "--format", "jsonl", str(folder)]) == 0
    assert "data.reader=folder" in capsys.readouterr().out
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").open()]
    assert [row["split"] for row in rows] == ["train"] * 5 + ["val"] * 2
    assert main(["--count", "5", str(folder)]) == 1
    assert "not an empty folder" in capsys.readouterr().err
    assert main(["--operations", "recolor", str(tmp_path / "x")]) == 2
    assert "did you mean recolour" in capsys.readouterr().err


def test_help_answers_without_heavy_imports():
    code = (
        "import sys, runpy\nsys.argv = ['export', '--help']\n"
        "try: runpy.run_module('ivedit.data.export', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'lightning', 'datasets', 'PIL'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--count" in done.stdout
