"""A plan is of the pairs that a local set holds, counted as the run counts them, and says where the number is from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ivedit.config import Config, ConfigError
from ivedit.planning.estimate import steps_of_run
from ivedit.planning.pairs import with_counted_pairs
from tests.data.setfiles import write_parquet


def table(folder: Path, count: int) -> Config:
    """A folder whose images are not there: nobody opens them."""
    folder.mkdir(parents=True)
    rows = [{"source": f"{i}.png", "target": f"{i}b.png", "instruction": "make it blue"} for i in range(count)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = Config()
    cfg.data.reader, cfg.data.path, cfg.data.table, cfg.data.pairs = "folder", str(folder), "pairs.jsonl", 13000
    return cfg


def test_a_small_table_is_counted_without_its_pictures(tmp_path: Path):
    cfg = table(tmp_path / "mine", 36)
    counted, told = with_counted_pairs(cfg)
    assert (counted.data.pairs, counted.data.validation_pairs) == (33, 3)  # a tenth of the rows is held out
    assert told == f"all that {tmp_path / 'mine'} offers of data.pairs=13000" and cfg.data.pairs == 13000
    counted.train.epochs, counted.train.batch_size = 5, 4
    assert steps_of_run(counted) == 5 * 8
    counted.train.batch_size = 64
    with pytest.raises(ConfigError, match="make no step"):
        steps_of_run(counted)


def test_parquet_is_counted_without_its_pictures_and_never_beyond_what_is_asked_for(tmp_path: Path):
    rows = [{"source": b"no picture", "target": b"none", "instruction": "make it blue"} for _ in range(30)]
    cfg = Config()
    cfg.data.reader, cfg.data.path, cfg.data.validation_pairs = "set", str(tmp_path / "all.parquet"), 4
    write_parquet(tmp_path / "all.parquet", rows)
    counted, told = with_counted_pairs(cfg)
    assert (counted.data.pairs, counted.data.validation_pairs) == (27, 3) and "all that" in told
    cfg.data.pairs = 20
    counted, told = with_counted_pairs(cfg)
    assert counted.data.pairs == 20 and told == f"of those in {tmp_path / 'all.parquet'}"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({}, ""),
        ({"reader": "folder"}, "data.path is not given"),
        ({"reader": "set", "path": "owner/name"}, "not on this machine"),
        ({"reader": "set", "preset": "omniedit"}, "not on this machine"),
        ({"reader": "set", "path": ".", "streaming": True}, "read while training"),
        ({"reader": "mine", "path": "."}, "read while training"),
    ],
)
def test_what_cannot_be_counted_is_as_configured_and_says_so(data: dict, told: str):
    cfg = Config()
    for name, value in data.items():
        setattr(cfg.data, name, value)
    found, said = with_counted_pairs(cfg)
    assert found is cfg and told in said and (bool(said) == bool(data))
