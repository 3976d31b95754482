"""Sets by their hub name, over HTTP from a small hub on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import PhotoFolder
from .hub import SHA, hub
from .setfiles import pair_rows, write_hub_layout

ROOT = Path(__file__).resolve().parents[2]

# The hub's address is read when its client is imported, so the reading process is another one.
READ = """
import sys
from ivedit.data.record import build_reader
from ivedit.data.stream import pair_data
from tests.data.conftest import ToyEncoders, sprite_config
streaming, name = sys.argv[1] == "stream", sys.argv[2]
cfg = sprite_config(reader="set", path=name, split="FreeForm", pairs=6, validation_pairs=1, height=32, width=48,
                    cache="none", streaming=streaming, shuffle_buffer=4, cache_dir="cache")
cfg.train.batch_size = 3
toy = ToyEncoders()
for batch in pair_data(cfg, toy.encode_pixels, toy.encode_text, "x").train_dataloader():
    print(*batch["ids"], float(batch["source"].mean()))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{**row, "id": f"p{i}"} for i, row in enumerate(pair_rows(PhotoFolder(tmp_path / "photos")))]
    return write_hub_layout(tmp_path / "hub", rows, {"FreeForm": slice(0, 12)}, shards=3)


def read(how: str, name: str, address: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
                   "HF_DATASETS_OFFLINE": "0", "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", READ, how, name], env=environment, capture_output=True, text=True, cwd=home, timeout=300
    )


def test_files_of_the_hub_are_fetched_as_far_as_they_are_needed(tmp_path: Path, folder: Path):
    with hub(folder, "someone/pairs") as (address, seen):
        fetched = read("files", "someone/pairs", address, tmp_path / "home")
    local = read("files", str(folder), "http://127.0.0.1:9", tmp_path / "home")
    assert fetched.returncode == local.returncode == 0, fetched.stderr + local.stderr
    assert fetched.stdout == local.stdout and len(fetched.stdout.splitlines()) == 2
    files = {line.split()[1].rpartition("/")[2] for line in seen if line.startswith("GET /datasets/") and SHA in line}
    assert {"FreeForm-00000-of-00003.parquet", "FreeForm-00001-of-00003.parquet"} <= files
    assert "FreeForm-00002-of-00003.parquet" not in files  # seven pairs are in the first two


def test_pairs_are_streamed_from_the_hub_as_from_a_folder(tmp_path: Path, folder: Path):
    with hub(folder, "someone/pairs") as (address, seen):
        streamed = read("stream", "someone/pairs", address, tmp_path / "home")
    local = read("stream", str(folder), "http://127.0.0.1:9", tmp_path / "home")
    assert streamed.returncode == local.returncode == 0, streamed.stderr + local.stderr
    assert streamed.stdout == local.stdout and len(streamed.stdout.splitlines()) == 2
    assert any(".parquet bytes=" in line for line in seen)  # by ranges, not whole files
    kept = list((tmp_path / "home").rglob("*.parquet"))
    assert kept == []


def test_a_name_that_the_hub_does_not_know_is_a_plain_error(tmp_path: Path, folder: Path):
    with hub(folder, "someone/pairs") as (address, _):
        done = read("files", "someone/else", address, tmp_path / "home")
    assert "'someone/else' cannot be read as a set" in done.stderr.splitlines()[-1]
