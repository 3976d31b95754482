"""Pretraining the tiny text-to-video DiT on latents of sprites.

Frames and clips take turns. Texts are padded to the editor's length or, on every fourth step of a kind, to the 512
tokens that `WanPipeline` pads to, because the text projection turns padding into keys that are not zero. One caption in
ten is dropped. A share of the draws lies at the ends of the noise range: the editor's source stream runs at sigma = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from ivedit.flow import interpolate, shift_sigma, velocity_loss, velocity_target
from ivedit.pretrain.module import PretrainModule
from ivedit.pretrain.text_encoder import tokenize
from ivedit.pretrain.whole_clip import encode_clip
from ivedit.sprites import captions, render, sample_scenes
from ivedit.sprites.vocabulary import FRAMES

__all__ = ["DitModule", "LatentPool", "build_dit", "caption_pools", "encode_pool", "text_states"]

_LONG_TEXT = 512


def build_dit(*, layers: int, heads: int, ffn: int, latent_channels: int, text_dim: int) -> WanTransformer3DModel:
    """A Wan 2.1 text-to-video transformer with heads of 64 and patch (1, 1, 1)."""
    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=heads,
        attention_head_dim=64,
        in_channels=latent_channels,
        out_channels=latent_channels,
        text_dim=text_dim,
        freq_dim=256,
        ffn_dim=ffn,
        num_layers=layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
        rope_max_seq_len=1024,
    )


@dataclass
class LatentPool:
    """Normalised latents (M, Z, F, h, w) and their captions' states (M, L, D), zero behind the text, both bfloat16."""

    latents: Tensor
    states: Tensor

    def __len__(self) -> int:
        return len(self.latents)


@torch.no_grad()
def encode_pool(vae: AutoencoderKLWan, pixels: Tensor) -> Tensor:
    """Normalised latents (B, Z, F, h, w) of clips (B, T, 3, H, W) in [0, 1]."""
    mean = torch.tensor(vae.config.latents_mean, device=pixels.device).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std, device=pixels.device).view(1, -1, 1, 1, 1)
    return (encode_clip(vae, pixels.transpose(1, 2) * 2 - 1)[0].float() - mean) / std


@torch.no_grad()
def text_states(text_encoder: UMT5EncoderModel, ids: Tensor) -> Tensor:
    """States (B, L, D) of token ids (B, L), zero behind each text's end, as `WanPipeline` pads."""
    real = ids != 0
    return text_encoder(ids.long(), real.long()).last_hidden_state * real[..., None]


@torch.no_grad()
def caption_pools(
    vae: AutoencoderKLWan,
    text_encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    scenes: int,
    frames_per_scene: int,
) -> tuple[LatentPool, LatentPool]:
    """Encode ``scenes`` clips, and single frames of ``scenes * frames_per_scene`` other scenes.

    Returns:
        The pool of frames and the pool of clips, on the VAE's device.
    """
    device = next(vae.parameters()).device
    pools = []
    for kind, count, offset, piece in (
        ("frames", scenes * frames_per_scene, 50_000_000, 2048),
        ("clips", scenes, 0, 256),
    ):
        latents, states = [], []
        for start in range(0, count, 8192):
            index = torch.arange(start, min(start + 8192, count)) + offset
            drawn = sample_scenes(seed, index.to(device), "pretrain")
            ids = tokenize(tokenizer, captions(drawn.to("cpu"), seed, index)).to(device)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
            which = torch.randint(FRAMES, (len(index), 1), generator=generator).to(device)
            for row in range(0, len(index), piece):
                rows = slice(row, row + piece)
                pixels = render(drawn[rows], which[rows] if kind == "frames" else None)
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    latents.append(encode_pool(vae, pixels).to(torch.bfloat16))
                states.append(text_states(text_encoder, ids[rows]).to(torch.bfloat16))
        pools.append(LatentPool(torch.cat(latents), torch.cat(states)))
    return pools[0], pools[1]


class DitModule(PretrainModule):
    """Flow matching on two pools, ``frames`` (F = 1) and ``clips``, both on the training device.

    Args:
        transformer: What is trained.
        text_encoder: Frozen; only the state of the empty text is made with it here.
        frames: Pool of single frames.
        clips: Pool of clips.
        shift: Flow shift of sigma.
        frame_share: Share of steps on single frames, evenly spread.
        frame_batch: Frames in such a step.
        clip_batch: Clips in the others.
        edge_share: Share of draws near the ends of the noise range, see `sigmas`.
        dropout: Share of captions replaced by the empty text.
        compiled: Compile the blocks.
        settings: See `PretrainModule`.
    """

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        text_encoder: UMT5EncoderModel,
        frames: LatentPool,
        clips: LatentPool,
        *,
        shift: float,
        frame_share: float,
        frame_batch: int,
        clip_batch: int,
        edge_share: float,
        dropout: float = 0.1,
        compiled: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(transformer, **settings)
        device = next(text_encoder.parameters()).device
        end_mark = torch.zeros(1, clips.states.shape[1], dtype=torch.long, device=device)
        end_mark[:, 0] = 1  # what the tokenizer makes of "": the end mark alone
        self.empty = text_states(text_encoder, end_mark).to(torch.bfloat16)
        self.frames, self.clips = frames, clips
        self.shift, self.frame_share, self.edge_share, self.dropout = shift, frame_share, edge_share, dropout
        self.frame_batch, self.clip_batch = frame_batch, clip_batch
        if compiled:
            transformer.compile_repeated_blocks(dynamic=False)

    def sigmas(self, count: int, generator: torch.Generator) -> Tensor:
        """Stratified, shifted sigma (count,); a share of ``edge_share`` in [0, 0.02] or [0.98, 1], some exactly 0."""
        r = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        sigma = shift_sigma(r, self.shift)
        edge = torch.rand(count, generator=generator)
        near = 0.02 * torch.rand(count, generator=generator)
        near = torch.where(torch.rand(count, generator=generator) < 0.5, torch.zeros(()), near)
        sigma = torch.where(edge < self.edge_share * 0.6, near, sigma)
        return torch.where((edge >= self.edge_share * 0.6) & (edge < self.edge_share), 1 - near, sigma)

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        clip_share = 1 - self.frame_share
        clips_before = math.floor(step * clip_share)
        clip_step = math.floor((step + 1) * clip_share) > clips_before
        pool, count = (self.clips, self.clip_batch) if clip_step else (self.frames, self.frame_batch)
        turn = clips_before if clip_step else step - clips_before  # which step of its kind this is
        length = _LONG_TEXT if turn % 4 == 0 else pool.states.shape[1]
        generator = self.generator(step)
        device = pool.latents.device
        rows = torch.randint(len(pool), (count,), generator=generator).to(device)
        dropped = (torch.rand(count, generator=generator) < self.dropout).to(device)
        sigma = self.sigmas(count, generator).to(device)
        x0 = pool.latents[rows].float()
        noise = torch.randn(
            x0.shape, device=device, generator=torch.Generator(device).manual_seed(generator.initial_seed())
        )
        states = torch.where(dropped[:, None, None], self.empty.to(device), pool.states[rows])
        states = torch.nn.functional.pad(states, (0, 0, 0, length - states.shape[1])).float()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            v = self.model(interpolate(x0, noise, sigma), 1000 * sigma, states, return_dict=False)[0]
        loss = velocity_loss(v.float(), velocity_target(x0, noise)).mean()
        return loss, {"clip_loss" if clip_step else "frame_loss": loss.detach()}
