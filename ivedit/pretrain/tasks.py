"""The four pretraining tasks, in the order in which they make the tiny pipeline's folder.

``pretrain_text`` (tokenizer, text encoder), ``pretrain_reader`` (the measuring instrument), ``pretrain_vae``, then
``pretrain_dit``, which needs the first and the third and completes the folder. Each reads its data from sprites alone,
writes its part into ``pretrain.folder`` and adds its record to ``pretraining.json`` there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ivedit.config.schema import Config
from ivedit.errors import IveditError
from ivedit.pretrain.module import PretrainModule
from ivedit.pretrain.recipe import add_piece

__all__ = ["TASKS", "clip_pool", "process_device"]

#: Trains a module for ``cfg.train.max_steps`` steps and leaves the weights to keep (the moving average, where there is
#: one) in it; returns what to put on record, or None in every process but the first, which has nothing to write.
Fit = Callable[[PretrainModule], dict[str, Any] | None]

#: Scenes drawn at once: bounds the memory that drawing layouts takes.
_DRAWN = 8192


def process_device(cfg: Config) -> torch.device:
    """The device of this process, as Lightning will choose it: the GPU of its local rank, or the CPU.

    Raises:
        IveditError: A GPU is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if cfg.train.accelerator == "cuda" and not there:
        raise IveditError("train.accelerator=cuda, but torch finds no GPU; set train.accelerator=cpu")
    if cfg.train.accelerator == "cpu" or not there:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _settings(cfg: Config) -> dict[str, Any]:
    return {
        "steps": cfg.train.max_steps,
        "lr": cfg.train.lr,
        "seed": cfg.seed,
        "warmup": cfg.train.warmup_steps,
        "weight_decay": cfg.train.weight_decay,
        "beta2": cfg.train.beta2,
    }


def _record(cfg: Config, what: dict[str, Any], started: float) -> None:
    device = process_device(cfg)
    piece = {
        "seed": cfg.seed,
        "seconds": round(time.time() - started, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        **what,
    }
    add_piece(cfg.pretrain.folder, cfg, piece)


def _starting_weights(cfg: Config, part: str) -> Path:
    folder = Path(cfg.pretrain.folder) / part
    if not folder.is_dir():
        raise IveditError(
            f"pretrain.warm_start=true, but {cfg.pretrain.folder} has no {part} to start from; "
            "set pretrain.warm_start=false, or pretrain.folder to a folder that has one"
        )
    return folder


def _starts_anew(cfg: Config) -> None:
    if cfg.pretrain.warm_start:
        raise IveditError(
            f"pretrain.warm_start=true, but {cfg.task} always starts anew (it takes a minute or two); only "
            "pretrain_vae and pretrain_dit can start from the weights in the folder"
        )


def clip_pool(seed: int, count: int, device: torch.device, chunk: int = 256) -> Tensor:
    """``count`` rendered pretraining clips (M, T, 3, 64, 64) uint8 on ``device``."""
    from ivedit.sprites import render, sample_scenes

    parts = []
    for start in range(0, count, _DRAWN):
        index = torch.arange(start, min(start + _DRAWN, count), device=device)
        scenes = sample_scenes(seed, index, "pretrain")
        for row in range(0, len(scenes), chunk):
            parts.append((render(scenes[row : row + chunk]) * 255).round().to(torch.uint8))
    return torch.cat(parts)


def train_text(cfg: Config, fit: Fit) -> None:
    """Tokenizer and text encoder."""
    from ivedit.pretrain.text_encoder import (
        TEXT_LENGTH,
        TextEncoderModule,
        build_text_encoder,
        build_tokenizer,
        tokenize,
    )
    from ivedit.sprites import all_words, captions, sample_pairs, sample_scenes

    _starts_anew(cfg)
    started, folder = time.time(), Path(cfg.pretrain.folder)
    tokenizer = build_tokenizer(all_words())
    count = cfg.pretrain.scenes
    texts = [""]
    for start in range(0, count, _DRAWN):
        index = torch.arange(start, min(start + _DRAWN, count))
        texts += captions(sample_scenes(cfg.seed, index, "pretrain"), cfg.seed, index)
        for split in ("train", "test_phrasing"):
            texts += sample_pairs(cfg.seed, index[::2] + 10_000_000, split).instruction
    torch.manual_seed(cfg.seed)
    encoder = build_text_encoder(len(tokenizer))
    module = TextEncoderModule(encoder, tokenize(tokenizer, texts), **_settings(cfg))
    what = fit(module)
    if what is None:
        return
    encoder.half().save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "ivedit.json").write_text(json.dumps({"text_length": TEXT_LENGTH}) + "\n")
    _record(cfg, {"texts": len(texts), **what}, started)


def train_reader(cfg: Config, fit: Fit) -> None:
    """The sprite reader."""
    from safetensors.torch import save_file

    from ivedit.pretrain.reader import ReaderModule
    from ivedit.sprites import SceneBatch, sample_scenes
    from ivedit.sprites.reader import SpriteReader

    _starts_anew(cfg)
    started, folder, device = time.time(), Path(cfg.pretrain.folder), process_device(cfg)
    torch.manual_seed(cfg.seed)
    reader = SpriteReader()
    parts = []
    for start in range(0, cfg.pretrain.scenes, _DRAWN):
        index = torch.arange(start, min(start + _DRAWN, cfg.pretrain.scenes), device=device)
        parts.append(sample_scenes(cfg.seed, index, "pretrain"))
    what = fit(ReaderModule(reader, SceneBatch.cat(parts), batch=cfg.train.batch_size, **_settings(cfg)))
    if what is None:
        return
    state = {name: value.detach().cpu().half().contiguous() for name, value in reader.state_dict().items()}
    save_file(state, folder / "reader.safetensors")
    _record(cfg, what, started)


def train_vae(cfg: Config, fit: Fit) -> None:
    """The video VAE, with its latent statistics."""
    from diffusers import AutoencoderKLWan

    from ivedit.pretrain.vae import VaeModule, latent_statistics, reconstruction_psnr
    from ivedit.pretrain.whole_clip import build_vae, inflate

    started, p, device = time.time(), cfg.pretrain, process_device(cfg)
    if p.warm_start:
        vae = AutoencoderKLWan.from_pretrained(_starting_weights(cfg, "vae"), torch_dtype=torch.float32)
    else:
        torch.manual_seed(cfg.seed)
        vae = build_vae(p.base_dim)
        inflate(vae)
    module = VaeModule(
        vae,
        clip_pool(cfg.seed, p.scenes, device),
        image_steps=p.image_steps,
        image_batch=p.frame_batch,
        clip_batch=p.clip_batch,
        kl_weight=p.kl_weight,
        code_weight=p.code_weight,
        compiled=p.compile,
        **_settings(cfg),
    )
    what = fit(module)
    if what is None:
        return
    vae.to(device).eval()
    mean, std = latent_statistics(vae, module.clips[:2048])
    vae.register_to_config(latents_mean=mean, latents_std=std)
    psnr = reconstruction_psnr(vae, clip_pool(cfg.seed + 1, min(512, p.scenes), device))
    what |= {
        "psnr": psnr.mean().item(),
        "worst_frame_psnr": psnr.mean(0).min().item(),
        "psnr_by_frame": [round(v, 2) for v in psnr.mean(0).tolist()],
    }
    vae.half().save_pretrained(Path(p.folder) / "vae")
    _record(cfg, what, started)


def train_dit(cfg: Config, fit: Fit) -> None:
    """The text-to-video DiT; completes the pipeline folder."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import AutoTokenizer, UMT5EncoderModel

    from ivedit.pretrain.dit import DitModule, build_dit, caption_pools

    started, folder, p = time.time(), Path(cfg.pretrain.folder), cfg.pretrain
    device = process_device(cfg)
    for part, task in (("text_encoder", "pretrain_text"), ("vae", "pretrain_vae")):
        if not (folder / part).is_dir():
            raise IveditError(f"{folder} has no {part}: run experiment={task} pretrain.folder={folder} first")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    text_encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).to(device)
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32).to(device)
    if p.warm_start:
        weights = _starting_weights(cfg, "transformer")
        transformer = WanTransformer3DModel.from_pretrained(weights, torch_dtype=torch.float32)
    else:
        torch.manual_seed(cfg.seed)
        transformer = build_dit(
            layers=p.layers,
            heads=p.heads,
            ffn=p.ffn,
            latent_channels=vae.config.z_dim,
            text_dim=text_encoder.config.d_model,
        )
    frames, clips = caption_pools(
        vae, text_encoder, tokenizer, seed=cfg.seed, scenes=p.scenes, frames_per_scene=p.frames_per_scene
    )
    module = DitModule(
        transformer,
        text_encoder,
        frames,
        clips,
        shift=p.shift,
        frame_share=p.frame_share,
        frame_batch=p.frame_batch,
        clip_batch=p.clip_batch,
        edge_share=p.edge_share,
        compiled=p.compile,
        **_settings(cfg),
    )
    what = fit(module)
    if what is None:
        return
    transformer.half().save_pretrained(folder / "transformer", max_shard_size="14MB")
    _complete(folder, p.shift)
    _record(cfg, what, started)


def _complete(folder: Path, shift: float) -> None:
    """Write what makes the parts one pipeline: the scheduler and diffusers' index of the folder."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "WanPipeline",
        "_diffusers_version": "0.37.0",  # the least that loads it
        "boundary_ratio": None,
        "expand_timesteps": False,
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer_2": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


TASKS: dict[str, Callable[[Config, Fit], None]] = {
    "pretrain_text": train_text,
    "pretrain_reader": train_reader,
    "pretrain_vae": train_vae,
    "pretrain_dit": train_dit,
}
