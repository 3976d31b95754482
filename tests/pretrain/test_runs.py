"""The four tasks from the command line: together they make a pipeline; a stopped one goes on; on two devices too."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from safetensors.torch import load_file

from ivedit.pretrain import bars
from ivedit.pretrain import card as cards
from ivedit.pretrain.recipe import read_record
from ivedit.run import main

COMMON = (
    "train.accelerator=cpu", "tracking.kind=none", "train.max_steps=2", "train.log_every=1", "train.warmup_steps=1",
    "pretrain.compile=false",
)  # fmt: skip
TINY = {
    "pretrain_text": ("pretrain.scenes=12",),
    "pretrain_reader": ("pretrain.scenes=12", "train.batch_size=2"),
    "pretrain_vae": (
        "pretrain.scenes=4", "pretrain.base_dim=4", "pretrain.image_steps=1", "pretrain.frame_batch=2",
        "pretrain.clip_batch=1",
    ),
    "pretrain_dit": (
        "pretrain.scenes=4", "pretrain.frames_per_scene=1", "pretrain.layers=1", "pretrain.heads=1",
        "pretrain.ffn=16", "pretrain.frame_batch=2", "pretrain.clip_batch=1",
    ),
}  # fmt: skip


def arguments(experiment: str, place: Path, *more: str, task: str = "") -> list[str]:
    folders = (f"output_dir={place / 'runs'}", f"pretrain.folder={place / 'pipe'}")
    return [f"experiment={experiment}", *COMMON, *TINY[task or experiment], *folders, *more]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pipeline ``pipe`` that the four tasks made, two steps each."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("made")
    for experiment in TINY:
        assert main(arguments(experiment, place)) == 0
    return place


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "pipe", tmp_path / "pipe")
    return tmp_path


def test_the_tasks_make_a_pipeline_that_plain_diffusers_runs(made: Path):
    pipeline = WanPipeline.from_pretrained(made / "pipe", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    clip = pipeline(
        "a red circle", height=64, width=64, num_frames=5, num_inference_steps=2, output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).frames[0]  # fmt: skip
    assert clip.shape == (5, 3, 64, 64)
    assert torch.as_tensor(clip).isfinite().all()
    std = torch.tensor(pipeline.vae.config.latents_std)
    assert std.shape == (16,) and (std > 0).all() and not (std == 1).all()  # measured, not the default
    for file in (made / "pipe").rglob("*.safetensors"):
        assert all(value.dtype == torch.float16 for value in load_file(file).values()), file
    assert json.loads((made / "pipe" / "ivedit.json").read_text()) == {"text_length": 64}


def test_every_task_puts_what_it_did_on_record(made: Path):
    record = read_record(made / "pipe")
    assert set(record) == set(TINY)
    for (piece,) in record.values():
        assert piece["steps"] == 2 and piece["device"] == "cpu" and piece["seconds"] >= 0
        assert piece["settings"]["train.warmup_steps"] == 1
        assert "loss" in piece["final"]
    assert len(record["pretrain_vae"][0]["psnr_by_frame"]) == 17
    assert record["pretrain_text"][0]["texts"] == 1 + 12 + 2 * 6


@pytest.mark.slow
def test_the_bars_are_measured_recorded_and_written_on_the_card(copy: Path, capsys: pytest.CaptureFixture[str]):
    folder = copy / "pipe"
    small = ["--device", "cpu", "--prompts", "3", "--clips", "9", "--batch", "9"]
    assert bars.main([str(folder), *small, "--record", "--strip", str(copy / "strip.png")]) == 1  # of course
    said = capsys.readouterr().out
    assert said.count("MISSED") + said.count("reached") == len(bars.BARS)
    found = read_record(folder)["bars"]
    assert set(bars.BARS) <= set(found)
    assert (found["prompts"], found["edits"]) == (3, 9)
    assert 0 <= found["objects_present"] <= 1 and found["vae_worst_frame_psnr"] <= found["vae_psnr"]
    assert (copy / "strip.png").stat().st_size > 1000

    assert cards.main([str(folder), "--check"]) == 1  # there is none yet
    assert cards.main([str(folder)]) == 0
    assert cards.main([str(folder), "--check"]) == 0
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert f"| {found['vae_psnr']:.2f} | 30 | **missed** |" in text and "bars are missed" in text

    # Another training piece: the bars are of other weights now, and the card is stale.
    assert main(arguments("pretrain_vae", copy, "pretrain.warm_start=true", "pretrain.image_steps=0")) == 0
    record = read_record(folder)
    assert "bars" not in record and len(record["pretrain_vae"]) == 2
    assert cards.main([str(folder), "--check"]) == 1
    assert "Not measured" in cards.card(folder)


def test_a_warm_start_goes_on_from_the_weights_in_the_folder(copy: Path):
    before = load_file(copy / "pipe" / "transformer" / "diffusion_pytorch_model.safetensors")
    # A rate so small that half precision does not see it: the weights that come out are those that went in.
    assert main(arguments("pretrain_dit", copy, "pretrain.warm_start=true", "train.lr=1e-12", "seed=5")) == 0
    after = load_file(copy / "pipe" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [piece["seed"] for piece in read_record(copy / "pipe")["pretrain_dit"]] == [0, 5]


@pytest.mark.parametrize(
    ("experiment", "more", "words"),
    [
        ("pretrain_dit", (), ("no text_encoder", "experiment=pretrain_text")),
        ("pretrain_vae", ("pretrain.warm_start=true",), ("no vae to start from", "pretrain.warm_start=false")),
        ("pretrain_text", ("pretrain.warm_start=true",), ("always starts anew", "pretrain_dit")),
        ("pretrain_reader", ("train.accelerator=cuda",), ("finds no GPU", "train.accelerator=cpu")),
    ],
)
def test_what_is_missing_is_named_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], experiment: str, more: tuple[str, ...], words: tuple[str, ...]
):
    if "train.accelerator=cuda" in more and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(arguments(experiment, tmp_path, *more)) == 1
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert read_record(tmp_path / "pipe") == {}


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    three = "train.max_steps=3"
    assert main(arguments("pretrain_text", whole, three)) == 0

    stop = tmp_path / "stop"
    stop.touch()
    monkeypatch.setenv("IVEDIT_STOP_FILE", str(stop))
    assert main(arguments("pretrain_text", parts, three)) == 0  # stopped on request, which is no failure
    assert json.loads(next((parts / "runs").glob("*/status.json")).read_text())["state"] == "STOPPED"
    assert "resume=" in "".join(capsys.readouterr())
    assert not list((parts / "pipe").iterdir())  # nothing is written before the last step
    stop.unlink()
    (run,) = (parts / "runs").iterdir()
    assert main([f"resume={run}"]) == 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    file = Path("pipe", "text_encoder", "model.safetensors")
    assert (whole / file).read_bytes() == (parts / file).read_bytes()


@pytest.mark.slow
def test_on_two_devices_only_the_first_writes_and_idle_weights_stay(copy: Path):
    before = AutoencoderKLWan.from_pretrained(copy / "pipe" / "vae").state_dict()
    # Single images never reach the temporal resampling; the decay would show on it.
    more = ("pretrain.warm_start=true", "pretrain.image_steps=2", "train.ema=0", "train.weight_decay=100")
    command = [sys.executable, "-m", "ivedit.run", *arguments("pretrain_vae", copy, "train.devices=2", *more)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    pieces = read_record(copy / "pipe")["pretrain_vae"]
    assert [piece["settings"]["train.devices"] for piece in pieces] == [1, 2]  # once, not once a process
    after = AutoencoderKLWan.from_pretrained(copy / "pipe" / "vae").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    idle = {name for name in before if "time_conv" in name}
    assert idle and changed and not changed & idle
    assert len(list((copy / "runs").iterdir())) == 1


def test_the_bars_command_says_what_it_takes(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as leave:
        bars.main(["--help"])
    assert leave.value.code == 0
    said = capsys.readouterr().out
    assert all(option in said for option in ("folder", "--prompts", "--clips", "--record", "--strip", "--device"))


def test_bars_of_a_folder_without_reader_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert bars.main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "experiment=pretrain_reader" in said and said.count("\n") == 1
