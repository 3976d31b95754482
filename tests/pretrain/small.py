"""Pretraining modules at the size of a test, on real sprites, and a plain loop that trains them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ivedit.pretrain.dit import DitModule, LatentPool, build_dit
from ivedit.pretrain.module import PretrainModule
from ivedit.pretrain.reader import ReaderModule
from ivedit.pretrain.tasks import clip_pool
from ivedit.pretrain.text_encoder import TextEncoderModule, build_text_encoder, build_tokenizer, tokenize
from ivedit.pretrain.vae import VaeModule
from ivedit.pretrain.whole_clip import build_vae, inflate
from ivedit.sprites import all_words, captions, sample_scenes
from ivedit.sprites.reader import SpriteReader

SETTINGS = {"steps": 100, "lr": 2e-3, "warmup": 1}


def text_module(seed: int = 0, **more) -> TextEncoderModule:
    index = torch.arange(8)
    texts = captions(sample_scenes(0, index, "pretrain"), 0, index)
    torch.manual_seed(0)
    tokenizer = build_tokenizer(all_words())
    ids = tokenize(tokenizer, texts, 16)
    return TextEncoderModule(build_text_encoder(len(tokenizer)), ids, seed=seed, **{**SETTINGS, **more})


def reader_module(seed: int = 0, **more) -> ReaderModule:
    torch.manual_seed(0)
    scenes = sample_scenes(0, torch.arange(16), "pretrain")
    return ReaderModule(SpriteReader(), scenes, batch=8, seed=seed, **{**SETTINGS, **more})


def vae_module(seed: int = 0, *, image_steps: int = 0, code_weight: float = 0.02, **more) -> VaeModule:
    torch.manual_seed(0)
    vae = build_vae(8)
    inflate(vae)
    return VaeModule(
        vae, clip_pool(0, 4, torch.device("cpu")), image_steps=image_steps, image_batch=8, clip_batch=1,
        kl_weight=1e-5, code_weight=code_weight, seed=seed, **{**SETTINGS, **more},
    )  # fmt: skip


def dit_module(seed: int = 0, *, frame_share: float = 0.5, edge_share: float = 0.08, **more) -> DitModule:
    torch.manual_seed(0)
    text_encoder = build_text_encoder(20).requires_grad_(False)

    def pool(frames: int) -> LatentPool:
        states = torch.randn(12, 8, 128) * (torch.arange(8) < 5)[:, None]
        return LatentPool(torch.randn(12, 4, frames, 2, 2).bfloat16(), states.bfloat16())

    return DitModule(
        build_dit(layers=1, heads=1, ffn=32, latent_channels=4, text_dim=128), text_encoder, pool(1), pool(3),
        shift=3.0, frame_share=frame_share, frame_batch=6, clip_batch=3, edge_share=edge_share, seed=seed,
        **{**SETTINGS, **more},
    )  # fmt: skip


def train(module: PretrainModule, steps: Iterable[int]) -> list[float]:
    """Losses of these steps, with the module's own optimiser and schedule."""
    made = module.configure_optimizers()
    optimiser, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    losses = []
    for step in steps:
        optimiser.zero_grad()
        loss, _ = module.loss(step)
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


def gradients(module: PretrainModule, step: int) -> dict[str, Tensor | None]:
    """Gradient of every trained weight after one loss."""
    module.zero_grad()
    module.loss(step)[0].backward()
    trained = {id(p) for p in module.trained_parameters()}
    return {name: p.grad for name, p in module.named_parameters() if id(p) in trained}
