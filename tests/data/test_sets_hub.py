"""Sets by their hub name, over HTTP from a small hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from .conftest import PhotoFolder
from .hub import hub
from .setfiles import pair_rows, write_hub_layout

ROOT = Path(__file__).resolve().parents[2]

# The hub's address is read when its client is imported, so the reading process is another one: one for everything.
READ = """
import hashlib, json, sys
from ivedit.config import Config
from ivedit.data.record import build_reader
from ivedit.data.rowstream import RowStream
from ivedit.data.setfiles import find_files, set_plan
from ivedit.errors import ConfigError

def config(name):
    cfg = Config()
    settings = dict(reader="set", path=name, split="FreeForm", pairs=6, validation_pairs=1, height=32, width=48)
    for key, value in settings.items():
        setattr(cfg.data, key, value)
    return cfg

def seen(cfg):
    reader = build_reader(cfg, "train")
    batch = reader.load_batch(range(len(reader)))
    words = [texts.id for texts in reader.texts(range(len(reader)))]
    return words, hashlib.sha256(batch.source.numpy().tobytes()).hexdigest()

def streamed(cfg):
    plan = set_plan(cfg)
    windows = RowStream(find_files(plan, "FreeForm"), plan.columns, min_scores={}, window=4).windows(1)
    return [[(row.texts.id, len(row.source)) for row in next(windows).rows] for _ in range(3)]

found = {"hub": seen(config("someone/pairs"))}
print("fetched", file=sys.stderr)
found["stream"] = streamed(config("someone/pairs"))
found["local"], found["local stream"] = seen(config(sys.argv[1])), streamed(config(sys.argv[1]))
try:
    seen(config("someone/else"))
except ConfigError as problem:
    found["refused"] = str(problem)
print(json.dumps(found))
"""


def test_sets_of_the_hub_are_fetched_as_needed_and_streamed_by_ranges(tmp_path: Path):
    rows = [{**row, "id": f"p{i}"} for i, row in enumerate(pair_rows(PhotoFolder(tmp_path / "photos")))]
    folder = write_hub_layout(tmp_path / "hub", rows, {"FreeForm": slice(0, 12)}, shards=3)
    home = tmp_path / "home"
    home.mkdir()
    with hub(folder, "someone/pairs") as (address, seen):
        environment = {
            **os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", READ, str(folder)], env=environment, capture_output=True, text=True, cwd=home
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["hub"] == found["local"] and len(found["hub"][0]) == 6
    assert found["stream"] == found["local stream"] and sum(map(len, found["stream"])) == 12
    assert "'someone/else' cannot be read as a set" in found["refused"]
    # Whole files, two of three: seven pairs are in them. The rest comes by ranges, and is kept nowhere.
    kept = {path.name for path in home.rglob("*.parquet")}
    assert kept == {"FreeForm-00000-of-00003.parquet", "FreeForm-00001-of-00003.parquet"}
    assert any("FreeForm-00002-of-00003.parquet bytes=" in line for line in seen)
    assert not any(line.startswith("GET") and line.endswith("FreeForm-00002-of-00003.parquet") for line in seen)
