"""`--plan`: what it prints and writes, which GPU it takes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ivedit.backbone import Backbone
from ivedit.config.command_line import split_options
from ivedit.config.schema import Config
from ivedit.data.datamodule import PairDataModule
from ivedit.editor.module import EditModule
from ivedit.errors import ConfigError
from ivedit.planning.backbones import backbone_configs
from ivedit.planning.estimate import Planner
from ivedit.planning.gpus import chosen_gpu, detected_gpu, gpu_named, gpu_names
from ivedit.planning.levers import slower
from ivedit.planning.report import MODULES
from ivedit.run import main
from tests.backbone.tiny import save_pipeline


def test_the_value_of_an_option_in_brackets_may_be_left_out():
    options, values = [("--plan [GPU]", ""), ("--json FILE", "")], {"--json": "a file"}
    for given, found in (
        (["--plan"], ""), (["--plan", "a=1"], ""), (["--plan", "h100", "a=1"], "h100"), (["--plan=h100"], "h100"),
        (["--plan", "--json", "f"], ""),
    ):  # fmt: skip
        assert split_options(given, options, values)[0]["--plan"] == found
    with pytest.raises(ConfigError, match="a file"):
        split_options(["--json"], options, values)


def test_a_gpu_is_known_by_its_name_or_found_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert {"h200", "h100", "a100", "4090", "l40s"} <= set(gpu_names())
    with pytest.raises(ConfigError, match="did you mean h200 or h100"):
        gpu_named("h300")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detected_gpu() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3'\n")
    tool.chmod(0o755)
    gpu, how = chosen_gpu("")
    assert (gpu.name, how) == ("h100", "found by nvidia-smi")


def test_every_gpu_of_the_table_is_plausible():
    for name in gpu_names():
        gpu = gpu_named(name)
        assert 0 < gpu.product <= 1 and 0 < gpu.attention <= 1 and 0 < gpu.traffic <= 1, name
        assert gpu.share in ("measured", "assumed"), name
        assert gpu.seconds("frozen", 1e12, 0) == pytest.approx(1 / (gpu.bf16_tflops * gpu.product))
        assert gpu.seconds("attention", 1e12, 0, 100) > gpu.seconds("attention", 1e12, 0, 10_000)
        assert gpu.seconds("other", 0, 1e9) == pytest.approx(1 / (gpu.bandwidth_gbs * gpu.traffic))


def test_a_plan_is_printed_and_written_and_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    save_pipeline(tmp_path / "tiny", blocks=1)
    weights = next((tmp_path / "tiny" / "transformer").glob("*.safetensors"))
    weights.unlink()  # configs are enough
    (tmp_path / "small.yaml").write_text(
        "backbone: {path: ./tiny}\neditor: {variant: side_by_side, rank: 4}\n"
        "data: {reader: folder, path: ./mine, table: pairs.jsonl, height: 64, width: 64, pairs: 13000}\n"
        "train: {epochs: 500, batch_size: 32, compile: on, capture: on}\n"
    )
    (tmp_path / "mine").mkdir()
    row = {"source": "a.png", "target": "b.png", "instruction": "make it blue"}
    rows = [json.dumps(row | {"split": "train" if number < 33 else "val"}) for number in range(36)]
    (tmp_path / "mine" / "pairs.jsonl").write_text("\n".join(rows))
    capsys.readouterr()
    assert main(["experiment=./small.yaml", "--plan", "a100", "--plan-json", "plan.json"]) == 0
    said, err = capsys.readouterr()
    assert err == "" and not (tmp_path / "runs").exists()
    plan = json.loads((tmp_path / "plan.json").read_text())
    memory, time, pair = plan["memory"], plan["time"], plan["flops"]["pair"]
    assert memory["peak_bytes"] == pytest.approx(sum(memory["peak"].values()))
    parts = (memory[f"{part}_bytes"] for part in ("peak", "context", "reserve"))
    assert memory["needed_bytes"] == pytest.approx(sum(parts))
    assert memory["fits"] and memory["largest_batch"] > plan["settings"]["batch_size"]
    assert plan["settings"]["captured"]  # though the plan also weighs settings under which no step can be
    assert pair["all"] == pytest.approx(pair["frozen"] + pair["modules"] + pair["attention"])
    # One batch of what the table has, not of the 13,000 pairs that were asked for.
    assert (plan["data"]["pairs"], plan["data"]["validation_pairs"], time["steps"]) == (33, 3, 500)
    assert plan["cache"]["latents_bytes"] == 36 * 2 * 4 * (4 * 16 * 16)
    assert "33 training and 3 validation pairs, all that ./mine offers of data.pairs=13000" in said
    assert time["share"] == "assumed"
    assert plan["parameters"]["trained"]["all"] == 1 * (2 * 8 * 48 * 4 + 2 * (48 + 80) * 4)
    kept = memory["activations"]
    assert kept["eager, checkpointed"] < kept["eager"] and kept["compiled"] <= kept["eager"]
    for words in ("frozen: transformer", "largest train.batch_size", "pairs/s", "backbone.gradient_checkpointing=true"):
        assert words in said


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--plan", "h300"], "h300"),
        (["--plan", "h200", "--plan-json", "no/such/folder/plan.json"], "--plan-json"),
        (["--plan", "h200", "task=pretrain_vae", "train.max_steps=1"], "task=pretrain_vae"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    arguments: list[str], problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert main(arguments) == 2
    assert problem in capsys.readouterr().err


def test_a_plan_speaks_in_plain_words():
    words = {1.001: "no time", 1.46: "46% more time", 2.5: "150% more time", 59.3: "59 times the time"}
    assert {ratio: slower(ratio) for ratio in words} == words
    method = (Path(__file__).resolve().parents[2] / "docs" / "method.md").read_text(encoding="utf-8").lower()
    assert "token map" in MODULES.values() and set(MODULES) < set(EditModule.__annotations__)
    assert all(name in method for name in MODULES.values())


@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_the_planned_cache_is_as_large_as_the_filled_one_mirrored_latents_too(flip: float, tmp_path: Path):
    cfg = Config()
    cfg.backbone.path = str(save_pipeline(tmp_path / "tiny", blocks=1))
    cfg.data.pairs, cfg.data.validation_pairs, cfg.data.height, cfg.data.width, cfg.data.flip = 5, 2, 16, 16, flip
    cfg.train.batch_size, cfg.data.cache, cfg.data.cache_dir = 2, "disk", str(tmp_path / "cache")
    plan = Planner(cfg, backbone_configs(cfg.backbone.path), gpu_named("a100"))
    backbone = Backbone.load(cfg.backbone.path)
    PairDataModule(cfg, backbone.encode_pixels, backbone.encode_text, "tiny").setup()
    shards = [load_file(path)["latents"] for path in (tmp_path / "cache").glob("*/latents/*.safetensors")]
    assert sum(shard.nbytes for shard in shards) == plan.cache()["latents_bytes"]
    # In memory a GPU keeps it, and a step has that much less.
    on_disk = plan.step()
    cfg.data.cache = "memory"
    resident = Planner(cfg, plan.configs, plan.gpu)
    kept = resident.step().trace.peak.total - on_disk.trace.peak.total
    assert kept == resident.cache()["gpu_bytes"] == plan.cache()["latents_bytes"] + plan.cache()["texts_bytes"]


def test_published_configs_need_no_folder_and_a_missing_file_is_named(tmp_path: Path):
    assert backbone_configs("wan2.1_14b").blocks == backbone_configs("Wan-AI/Wan2.1-T2V-14B-Diffusers").blocks == 40
    assert backbone_configs("wan2.2_5b").factors == (48, 16, 4)
    folder = save_pipeline(tmp_path / "tiny", blocks=1)
    (folder / "vae" / "config.json").unlink()
    from ivedit.errors import IveditError

    with pytest.raises(IveditError, match=r"vae.config\.json"):
        backbone_configs(str(folder))
