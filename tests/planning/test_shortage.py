"""Memory that runs out in a run: one message, with the plan's numbers, and a run that can be continued."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from ivedit import edit, evaluate
from ivedit.backbone import Backbone
from ivedit.config.schema import Config
from ivedit.editor import build_editor, register, save_editor
from ivedit.editor.registry import VARIANTS
from ivedit.editor.side_by_side import SideBySideEditor
from ivedit.media import write_video
from ivedit.planning.backbones import backbone_configs
from ivedit.planning.estimate import Planner
from ivedit.planning.gpus import chosen_gpu
from ivedit.planning.report import gibibytes
from ivedit.planning.shortage import MemoryShortage, _resumes, shortage_told
from ivedit.run import main as run
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
def test_a_run_without_memory_says_where_and_what_each_change_saves(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(VARIANTS, "_objects", dict(VARIANTS._objects))  # so that no other test sees the plugin's
    assert run(["experiment=./small.yaml"]) == 1 and (place / "runs").is_dir()
    said = capsys.readouterr().err.strip().splitlines()
    first, *advice = said[next(i for i, line in enumerate(said) if "GPU memory ran out" in line) :]
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
    from ivedit.planning.gpus import chosen_gpu
    from ivedit.planning.levers import levers
    from ivedit.planning.report import gibibytes, lever_lines

    cfg = load("./small.yaml")
    gpu = dataclasses.replace(chosen_gpu("")[0], memory_gib=79.11)
    plan = Planner(cfg, backbone_configs(cfg.backbone.path), gpu)
    found = levers(plan)
    assert gibibytes(plan.step().needed) in advice[0]
    assert advice[1 : 1 + len(found)] == lever_lines([dataclasses.asdict(lever) for lever in found])
    assert any(lever.settings == "train.batch_size=2 train.accumulate=2" and lever.saves > 0 for lever in found)
    assert str(plan.largest_batch()) in advice[1 + len(found)]


class HungrySampler(SideBySideEditor):
    """Memory runs out while it samples: not while the plan runs it on tensors without content."""

    def velocity(self, backbone, latents, *args, **more):
        if not isinstance(latents, FakeTensor):
            raise torch.OutOfMemoryError(TOLD)
        return super().velocity(backbone, latents, *args, **more)


@pytest.fixture
def hungry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An editor's file, trained on ./tiny, that cannot sample; the working directory is its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(VARIANTS, "_objects", dict(VARIANTS._objects))  # so that no other test sees it
    register("hungry_sampler")(HungrySampler)
    backbone = Backbone.load(save_pipeline(tmp_path / "tiny", blocks=1))
    editor = build_editor({"variant": "hungry_sampler", "rank": 4}, backbone)
    data = {"height": 32, "width": 32, "operations": ["remove"]}
    config = {"backbone": {"path": "tiny"}, "data": data, "sampling": {"steps": 2}}
    return save_editor(tmp_path / "editor.safetensors", editor, backbone=backbone, extra={"config": config})


def saved_by(line: str) -> str:
    """The number in a line of advice."""
    found = re.search(r"saves +(\S+ [KMG]iB)", line)
    assert found, line
    return found.group(1)


def test_an_edit_without_memory_says_which_arguments_save_how_much(hungry: Path, capsys):
    write_video(Path("clip.mp4"), torch.zeros(17, 3, 32, 32), Fraction(8))
    arguments = ["clip.mp4", "remove the star", "--editor", str(hungry), "--device", "cpu"]
    assert edit.main(arguments) == 1
    first, plan, *advice = capsys.readouterr().err.strip().splitlines()
    assert first == (
        "error: GPU memory ran out in editing 17 frames of 32x32 at once: 2.50 GiB asked for, 512.00 MiB free of "
        "79.11 GiB"
    )
    planned = planner_of(hungry, frames=17)
    now = planned.sampling()
    assert f"with 17 frames need {gibibytes(now['peak_bytes'])}" in plan
    offload, window, size, tiling, cpu = (line.split()[0] for line in advice)
    assert (offload, window, size, tiling, cpu) == ("--offload", "--window", "--size", "--vae-tiling", "--device")
    assert saved_by(advice[0]) == gibibytes(planned.cache()["encoders_bytes"])
    for line, value, change in zip(advice[1:], ("9", "16x16"), ({"frames": 9}, {"size": (16, 16)}), strict=False):
        saves = now["peak_bytes"] - planned.sampling(**change)["peak_bytes"]
        assert line.split()[1] == value and saved_by(line) == gibibytes(saves)
    # what has been done already is not advised again
    assert edit.main([*arguments, "--offload", "--vae-tiling", "--window", "9"]) == 1
    assert "--offload" not in (said := capsys.readouterr().err) and "--vae-tiling" not in said
    assert "editing 9 frames of 32x32" in said and "--window" not in said  # five would be all overlap


def test_an_evaluation_without_memory_says_which_settings_save_how_much(hungry: Path, capsys):
    given = [str(hungry), "evaluation.clips=6", "evaluation.frames=9", "tracking.kind=none", "--device", "cpu"]
    assert evaluate.main([*given, "evaluation.batch_size=6"]) == 1
    first, plan, *advice = capsys.readouterr().err.strip().splitlines()
    reason = "GPU memory ran out in editing 6 clips at once: 2.50 GiB asked for, 512.00 MiB free of 79.11 GiB"
    assert reason in first
    (folder,) = Path("runs").glob("evaluation-*")
    assert json.loads((folder / "status.json").read_text())["reason"] == reason
    planned = planner_of(hungry, frames=9)
    now = planned.sampling(clips=6)["peak_bytes"]
    assert f"6 clips of 9 frames need {gibibytes(now)}" in plan
    changed = {"evaluation.batch_size=3": {"clips": 3}, "evaluation.batch_size=1": {"clips": 1},
               "evaluation.frames=5": {"clips": 6, "frames": 5}}  # fmt: skip
    assert [line.split()[0] for line in advice] == [*changed, "--device"]
    for line, change in zip(advice, changed.values(), strict=False):
        assert saved_by(line) == gibibytes(now - planned.sampling(**change)["peak_bytes"])


def planner_of(editor: Path, *, frames: int) -> Planner:
    """A plan of the tiny backbone with this editor's shapes."""
    cfg = Config()
    cfg.backbone.path, cfg.data.height, cfg.data.width, cfg.evaluation.frames = "tiny", 32, 32, frames
    cfg.editor.variant, cfg.editor.rank = "hungry_sampler", 4
    gpu = dataclasses.replace(chosen_gpu("")[0], memory_gib=79.11)
    return Planner(cfg, backbone_configs("tiny"), gpu)


@pytest.mark.parametrize(
    ("module", "where"),
    [
        ("ivedit.data.fill", "filling the cache of latents and texts"),
        ("ivedit.pipeline", "sampling for the evaluation"),
        ("ivedit.backbone.loading", "loading the backbone"),
        ("ivedit.evaluation.metrics.vision", "measuring and judging edits"),
        ("ivedit.data.text", "the run"),
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


def test_resume_is_not_said_to_take_more_gpus_than_its_checkpoint_has():
    assert _resumes("train.strategy=fsdp") and _resumes("train.compile=on")
    assert not _resumes("train.strategy=fsdp train.devices=2") and not _resumes("editor.width=8")
