"""The weights in the package: plain diffusers runs them, they have the quality on record, and their recipe is true."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from PIL import Image

from ivedit import experiments
from ivedit.config import load
from ivedit.pretrain import bars
from ivedit.pretrain.card import card
from ivedit.pretrain.recipe import EXPERIMENTS, read_record, settings_of
from ivedit.pretrain.tasks import TASKS, clip_pool
from ivedit.pretrain.vae import reconstruction_psnr
from ivedit.pretrain.whole_clip import encode_clip

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "ivedit" / "assets" / "wan-sprites"


@pytest.fixture(scope="module")
def pipeline() -> WanPipeline:
    pipeline = WanPipeline.from_pretrained(SHIPPED, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_plain_diffusers_draws_a_clip_from_a_caption(pipeline: WanPipeline):
    clip = pipeline(
        "a large red circle moving right slowly on a plain black background", height=64, width=64, num_frames=17,
        num_inference_steps=6, output_type="pt", generator=torch.Generator().manual_seed(0),
    ).frames[0]  # fmt: skip
    clip = torch.as_tensor(clip)
    assert clip.shape == (17, 3, 64, 64)
    assert clip.isfinite().all() and clip.min() >= 0 and clip.max() <= 1
    red = (clip[:, 0] > 0.6) & (clip[:, 1] < 0.3)
    dark = clip.amax(1) < 0.2
    assert (red.flatten(1).float().mean(1) > 0.05).all()  # 14% of the frame, when it is drawn well
    assert (dark.flatten(1).float().mean(1) > 0.5).all()


def test_its_parts_are_classes_of_diffusers_and_transformers(pipeline: WanPipeline):
    parts = [part for part in pipeline.components.values() if part is not None]
    assert len(parts) == 5
    assert {type(part).__module__.partition(".")[0] for part in parts} == {"diffusers", "transformers"}
    assert pipeline.vae.config.scale_factor_temporal == 4 and pipeline.vae.config.scale_factor_spatial == 8


def test_the_vae_reconstructs_held_out_clips_in_every_frame(pipeline: WanPipeline):
    psnr = reconstruction_psnr(pipeline.vae, clip_pool(123, 16, torch.device("cpu")), batch=4).mean(0)
    assert psnr.shape == (17,)
    assert psnr.mean() > bars.BARS["vae_psnr"][0]
    assert psnr.min() > bars.BARS["vae_worst_frame_psnr"][0]


def test_normalised_latents_have_mean_0_and_deviation_1(pipeline: WanPipeline):
    config = pipeline.vae.config
    clips = clip_pool(124, 16, torch.device("cpu")).transpose(1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = torch.cat([encode_clip(pipeline.vae, part)[0] for part in clips.split(4)])
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    latents = (latents - mean) / std
    assert latents.mean().abs() < 0.1 and latents.mean((0, 2, 3, 4)).abs().max() < 0.4
    assert 0.9 < latents.std() < 1.1
    assert (latents.transpose(0, 1).flatten(1).std(1) - 1).abs().max() < 0.25


def test_a_still_clips_latent_frames_are_near_the_images(pipeline: WanPipeline):
    image = clip_pool(125, 8, torch.device("cpu"))[:, :1].transpose(1, 2).float() / 127.5 - 1
    with torch.no_grad():
        one = encode_clip(pipeline.vae, image)[0]
        later = encode_clip(pipeline.vae, image.expand(-1, -1, 9, -1, -1))[0][:, :, 1:]
    gap = (later - one).square().mean() / one.var()
    assert gap < 0.01  # the model card says 0.2%


def test_it_is_small_enough_for_a_repository():
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) <= 32e6


def test_only_safetensors_and_plain_text_are_shipped():
    assert {file.suffix for file in SHIPPED.rglob("*") if file.is_file()} == {".safetensors", ".json", ".md"}


def test_the_record_holds_every_task_and_every_bar():
    record = read_record(SHIPPED)
    assert set(TASKS) <= set(record)
    assert set(bars.BARS) <= set(record["bars"])
    assert record["bars"]["prompts"] >= 200 and record["bars"]["edits"] >= 240
    for name, (least, _) in bars.BARS.items():
        assert record["bars"][name] >= least, name


def test_the_shipped_experiments_are_the_recipe_on_record():
    record = read_record(SHIPPED)
    for task, names in EXPERIMENTS.items():
        assert len(names) == len(record[task])
        for name, piece in zip(names, record[task], strict=True):
            cfg = load(name)
            assert (cfg.task, cfg.train.max_steps, cfg.seed) == (task, piece["steps"], piece["seed"]), name
            assert cfg.train.devices == piece.get("gpus", 1)
            assert piece.get("settings", settings_of(cfg)) == settings_of(cfg), name
    named = {name for names in EXPERIMENTS.values() for name in names}
    assert named == {name for name in experiments.names() if name.startswith("pretrain_")}


def test_the_model_card_is_up_to_date():
    assert (SHIPPED / "README.md").read_text(encoding="utf-8") == card(SHIPPED), (
        "stale: run `python -m ivedit.pretrain.card ivedit/assets/wan-sprites`"
    )


def test_the_model_cards_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = (SHIPPED / "README.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "ivedit").symlink_to(ROOT / "ivedit")
    monkeypatch.chdir(tmp_path)
    exec(code.replace("num_inference_steps=50", "num_inference_steps=2"), {})
    assert Image.open(tmp_path / "star.gif").n_frames == 17
