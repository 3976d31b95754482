"""A small folder in the layout of Wan2.2-TI2V-5B, from its files to an edited clip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ivedit import edit, media
from ivedit.run import main
from tests.backbone.layouts import save_layout


def test_a_folder_in_the_layout_of_wan_22_trains_and_edits_a_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    save_layout("wan2.2_5b", tmp_path / "wan")
    small = [
        "data.pairs=4", "data.validation_pairs=2", "train.batch_size=2", "train.max_steps=2", "train.log_every=1",
        "train.warmup_steps=1", "train.accelerator=cpu", "editor.width=12", "editor.mlp=0", "text.length=8",
        "data.cache=disk", "evaluation.enabled=false", "tracking.kind=none",
    ]  # fmt: skip
    assert main(["experiment=imvideoedit", "backbone=./wan", *small]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [value for row in rows for name, value in row.items() if "loss" in name]
    assert len(losses) >= 2 and all(0 < loss < 100 for loss in losses)

    clip = tmp_path / "clip.mp4"
    with media.VideoWriter(clip, (64, 96), 8) as film:
        for step in range(6):
            film.write(torch.full((3, 64, 96), step / 6))
    how = ["--steps", "1", "--size", "64x96", "--window", "5", "--overlap", "1", "--out", "out.mp4"]
    assert edit.main([str(clip), "make it red", "--editor", str(run), "--backbone", "./wan", *how]) == 0
    assert "6 frames in " in capsys.readouterr().out
    frames = [frame for _, frame in media.VideoReader(tmp_path / "out.mp4")]
    assert len(frames) == 6 and frames[0].shape == (3, 64, 96)
