"""The model card follows its sources: what changes in record, weights or bars changes the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ivedit.errors import IveditError
from ivedit.pretrain.card import card, main, parameters
from ivedit.pretrain.recipe import read_record, write_record
from tests.pretrain.test_shipped import SHIPPED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "pipe"))


def test_weights_are_counted_from_the_header(tmp_path: Path):
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(2, dtype=torch.float16), "c": torch.zeros(())}, tmp_path / "x")
    assert parameters(tmp_path / "x") == 18
    (tmp_path / "y").write_bytes(b"not one")
    with pytest.raises(IveditError, match="not a safetensors file"):
        parameters(tmp_path / "y")


def test_a_missed_bar_is_called_missed_and_a_reached_one_reached(folder: Path):
    record = read_record(folder)
    for value, word in ((0.8999, "**missed**"), (0.9, "reached")):
        record["bars"]["directions_right"] = value
        write_record(folder, record)
        (row,) = (line for line in card(folder).splitlines() if "direction of motion" in line)
        assert row.endswith(f"| {word} |")


def test_all_bars_reached_is_said_only_when_they_are(folder: Path):
    record = read_record(folder)
    from ivedit.pretrain.bars import BARS

    record["bars"].update({name: least + 0.01 for name, (least, _) in BARS.items()})
    write_record(folder, record)
    assert "All 6 bars are reached." in card(folder)
    record["bars"]["vae_psnr"] = 29.0
    write_record(folder, record)
    assert "**1 of 6 bars are missed.**" in card(folder)


def test_a_piece_has_its_own_settings_or_those_of_the_experiment_that_made_it(folder: Path):
    record = read_record(folder)
    first = record["pretrain_dit"][0]
    first.pop("settings", None)
    write_record(folder, record)
    assert "`experiment=pretrain_dit`: `seed=0`, `train.lr=0.001`" in " ".join(card(folder).split())
    first["steps"] += 1  # no shipped experiment has that many
    write_record(folder, record)
    assert "its other settings are not on record" in " ".join(card(folder).split())
    first["settings"] = {"seed": 0, "train.lr": 0.5}
    write_record(folder, record)
    assert "Piece 1: `seed=0`, `train.lr=0.5`." in card(folder)


def test_other_weights_make_it_stale(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(folder)]) == 0
    assert main([str(folder), "--check"]) == 0
    save_file({"a": torch.zeros(7)}, folder / "reader.safetensors")
    assert main([str(folder), "--check"]) == 1
    assert "stale" in capsys.readouterr().out


def test_a_folder_without_record_or_parts_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path)]) == 1
    assert "no pretraining.json" in capsys.readouterr().err
    (tmp_path / "pretraining.json").write_text(json.dumps({"pretrain_text": []}))
    assert main([str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "transformer" in said and said.count("\n") == 1


def test_the_pages_commands_are_the_recipe_in_order_and_can_run():
    from ivedit.config.compose import compose
    from ivedit.pretrain.recipe import EXPERIMENTS
    from tests.pages import commands

    runs = [
        words[words.index("ivedit.run") + 1 :] for words in commands("docs/pretraining.md") if "ivedit.run" in words
    ]
    assert all(compose(settings).config.task.startswith("pretrain_") for settings in runs)
    plain = [settings[0].removeprefix("experiment=") for settings in runs if len(settings) == 1]
    assert set(plain) == {name for names in EXPERIMENTS.values() for name in names}
    dit = EXPERIMENTS["pretrain_dit"]
    assert tuple(plain[-len(dit) :]) == dit
