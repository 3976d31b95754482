"""Memory that runs out in a run: one message, with the plan's numbers, and a run that can be continued."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ivedit.config.schema import Config
from ivedit.planning.shortage import MemoryShortage, shortage_told
from tests.backbone.tiny import save_pipeline

TOLD = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 512.00 MiB is "
    "free. Of the allocated memory 77.90 GiB is allocated by PyTorch."
)
PLUGIN = f"""
import torch
from torch._subclasses.fake_tensor import FakeTensor
from ivedit.editor import register
from ivedit.editor.side_by_side import SideBySideEditor

@register("hungry")
class Hungry(SideBySideEditor):
    def velocity(self, backbone, latents, *args, **more):
        if len(latents) > 2 and torch.is_grad_enabled() and not isinstance(latents, FakeTensor):
            raise torch.OutOfMemoryError({TOLD!r})
        return super().velocity(backbone, latents, *args, **more)
"""
SMALL = """
backbone: {path: ./tiny}
plugins: [hungry_editor]
editor: {variant: hungry, rank: 4}
data: {pairs: 8, validation_pairs: 4, operations: [remove]}
train: {epochs: 1, batch_size: 4, accelerator: cpu, warmup_steps: 1, validate_every: 0}
evaluation: {enabled: false}
tracking: {kind: none}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    save_pipeline(tmp_path / "tiny", blocks=1)
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "hungry_editor.py").write_text(PLUGIN)
    return tmp_path


@pytest.mark.slow
def test_a_run_without_memory_says_where_and_what_each_change_saves(place: Path):
    command = [sys.executable, "-m", "ivedit.run", "experiment=./small.yaml"]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and (place / "runs").is_dir(), done.stderr
    first, *advice = done.stderr.strip().splitlines()
    reason = "GPU memory ran out in a training step of batch 4: 2.50 GiB asked for, 512.00 MiB free of 79.11 GiB"
    (folder,) = (place / "runs").glob("small-*")
    assert reason in first and str(folder) in first
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("FAILED", reason)
    assert "OutOfMemoryError" in (folder / "log.txt").read_text()
    # the numbers are the plan's
    from ivedit.config import load
    from ivedit.planning.backbones import backbone_configs
    from ivedit.planning.estimate import Planner
    from ivedit.planning.levers import levers
    from ivedit.planning.report import chosen_gpu, gibibytes, lever_lines
    from ivedit.run import import_plugins

    cfg = load("./small.yaml")
    import_plugins(cfg.plugins)
    gpu = dataclasses.replace(chosen_gpu("")[0], memory_gib=79.11)
    plan = Planner(cfg, backbone_configs(cfg.backbone.path), gpu)
    found = levers(plan)
    assert gibibytes(plan.step().needed) in advice[0]
    assert advice[1 : 1 + len(found)] == lever_lines([dataclasses.asdict(lever) for lever in found])
    assert any(lever.settings == "train.batch_size=2 train.accumulate=2" and lever.saves > 0 for lever in found)
    assert str(plan.largest_batch()) in advice[1 + len(found)]
    print(done.stderr)


@pytest.mark.parametrize(
    ("module", "where"),
    [
        ("ivedit.data.fill", "filling the cache of latents and texts"),
        ("ivedit.pipeline", "sampling for the evaluation"),
        ("ivedit.backbone.loading", "loading the backbone"),
        ("somewhere.else", "the run"),
    ],
)
def test_the_place_is_the_innermost_of_ours_that_the_error_went_through(module: str, where: str):
    outer: dict = {"__name__": "ivedit.training.run"}
    inner: dict = {"__name__": module, "error": torch.OutOfMemoryError(TOLD)}
    exec("def act():\n    raise error", inner)
    exec("def act(then):\n    then()", outer)
    with pytest.raises(MemoryShortage, match=f"ran out in {where}"), shortage_told(Config()):
        outer["act"](inner["act"])


def test_an_error_that_came_from_a_shortage_is_one_and_others_stay_as_they_are():
    with pytest.raises(MemoryShortage, match=r"2.50 GiB asked for"), shortage_told(Config()):
        try:
            raise torch.OutOfMemoryError(TOLD)
        except RuntimeError as error:
            raise ValueError("the step cannot be captured") from error
    with pytest.raises(ValueError, match="something else"), shortage_told(Config()):
        raise ValueError("something else")


def test_a_plan_that_cannot_be_made_does_not_hide_the_shortage():
    cfg = Config()
    cfg.backbone.path = "./nowhere"
    with pytest.raises(MemoryShortage) as caught, shortage_told(cfg):
        raise torch.OutOfMemoryError(TOLD)
    assert "no plan can be made" in caught.value.advice() and "nowhere" in caught.value.advice()
