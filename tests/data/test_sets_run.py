"""Whole runs: training from parquet, fetched or streamed, is training from the folder with the same pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ivedit.run import main
from tests.backbone.tiny import save_pipeline

from .conftest import PhotoFolder
from .setfiles import pair_rows, write_hub_layout, write_parquet

RUN = """
backbone: {path: ./tiny}
data: {pairs: 10, validation_pairs: 2, height: 32, width: 32}
train:
  {max_steps: 2, batch_size: 4, accelerator: cpu, warmup_steps: 1, checkpoint_every: 1, log_every: 1, validate_every: 1}
evaluation: {enabled: false}
tracking: {kind: none}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_pipeline(tmp_path / "tiny")
    (tmp_path / "run.yaml").write_text(RUN)
    photos = PhotoFolder(tmp_path / "photos")
    for number, row in enumerate(photos.rows):
        row["split"] = "val" if number in (2, 5) else "train"
    photos.write()
    rows = pair_rows(photos)
    write_parquet(tmp_path / "pairs.parquet", rows)
    write_hub_layout(tmp_path / "hub", rows, {"train": slice(0, 12)})
    return tmp_path


def losses(place: Path, name: str, *settings: str) -> list[tuple]:
    assert main(["experiment=./run.yaml", f"output_dir={name}", *settings]) == 0
    (folder,) = (place / name).iterdir()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], key, line[key]) for line in lines for key in sorted(line) if key.endswith("loss")]


def test_a_run_on_parquet_loses_exactly_what_the_folder_loses(place: Path, capsys: pytest.CaptureFixture[str]):
    folder = losses(place, "a", "data.reader=folder", "data.path=photos", "data.table=pairs.jsonl")
    parquet = losses(place, "b", "data.reader=set", "data.path=pairs.parquet", "data.pairs=40")
    said = "".join(capsys.readouterr()).rpartition("training predict_update")[2]
    assert " weights, 10 pairs, 2 steps of 4 pairs" in said
    assert folder == parquet and len(folder) >= 2, (folder, parquet)
    # A stream, of the same pairs in another order, trains and goes on from its checkpoint.
    stream = ["data.reader=set", "data.path=hub", "data.streaming=true", "data.cache=none", "data.shuffle_buffer=4",
              "data.workers=1"]  # fmt: skip
    whole = losses(place, "c", *stream, "train.max_steps=3")
    losses(place, "d", *stream)
    (cut,) = (place / "d").iterdir()
    assert main([f"resume={cut}", "train.max_steps=3"]) == 0
    lines = [json.loads(line) for line in (cut / "metrics.jsonl").read_text().splitlines()]
    resumed = [(line["step"], key, line[key]) for line in lines for key in sorted(line) if key.endswith("loss")]
    assert resumed[-1] == whole[-1]
    assert "Traceback" not in capsys.readouterr().err
