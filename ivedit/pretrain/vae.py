"""Pretraining the tiny video VAE on sprites: single images first, then clips.

The VAE starts inflated from an image VAE (`whole_clip.inflate`), learns images for ``image_steps`` (17 times cheaper)
and then clips. The loss is the root of the mean squared error of every (clip, latent frame), so that a faint small
object in a plain scene weighs as much as a busy scene, with a small L1 and a KL term. ``code_weight`` keeps each latent
frame near the image code of its last frame.

The noise that the latents are sampled with comes from torch's global generator (its state is in the checkpoints); the
other draws are functions of (seed, step, rank).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample
from torch import Tensor, nn

from ivedit.pretrain.module import PretrainModule
from ivedit.pretrain.whole_clip import decode_clip, encode_clip

__all__ = ["VaeModule", "latent_statistics", "reconstruction_psnr"]


class VaeModule(PretrainModule):
    """Trains a VAE on ``clips``: (M, T, 3, H, W) uint8 on the training device.

    Args:
        vae: From `build_vae`, inflated, or trained before.
        clips: The pool.
        image_steps: The first steps are on single frames, the others on clips.
        image_batch: Frames in a step of the first kind.
        clip_batch: Clips in a step of the second kind.
        kl_weight: Of the divergence from a standard normal distribution, per latent value.
        code_weight: Of the squared distance between a later latent frame and the image code of the last of its four
            frames, relative to the mean square of such codes; 0: off.
        compiled: Compile the forward passes.
        settings: See `PretrainModule`.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        clips: Tensor,
        *,
        image_steps: int,
        image_batch: int,
        clip_batch: int,
        kl_weight: float,
        code_weight: float,
        compiled: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(vae, **settings)
        self.clips = clips
        self.z_dim = int(vae.config.z_dim)
        self.image_steps, self.image_batch, self.clip_batch = image_steps, image_batch, clip_batch
        self.kl_weight, self.code_weight = kl_weight, code_weight
        self._forward = torch.compile(self._reconstruct, dynamic=False) if compiled else self._reconstruct
        self._image_codes = torch.compile(self._codes, dynamic=False) if compiled else self._codes
        resamplers = (module for module in vae.modules() if isinstance(module, WanResample))
        self._temporal = [
            p for layer in resamplers if hasattr(layer, "time_conv") for p in layer.time_conv.parameters()
        ]
        self._idle: list[nn.Parameter] = []

    def _reconstruct(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = encode_clip(self.model, x)
        mean, log_var = mean.float(), log_var.float()
        z = mean + torch.exp(0.5 * log_var) * noise
        return decode_clip(self.model, z).float(), mean, log_var

    def _codes(self, frames: Tensor) -> Tensor:
        """Latents of every frame of (B, 3, T, H, W) as an image of its own: (B, Z, T, h, w)."""
        codes, _ = encode_clip(self.model, frames.transpose(1, 2).flatten(0, 1)[:, :, None])
        return codes.float().unflatten(0, (len(frames), -1)).squeeze(3).transpose(1, 2)

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = step < self.image_steps
        count = self.image_batch if images else self.clip_batch
        generator = self.generator(step)
        rows = torch.randint(len(self.clips), (count,), generator=generator).to(self.clips.device)
        if images:
            frames = torch.randint(self.clips.shape[1], (count,), generator=generator).to(self.clips.device)
            x = self.clips[rows, frames][:, None]
        else:
            x = self.clips[rows]
        x = x.transpose(1, 2).float() / 127.5 - 1
        latent_frames = 1 + (x.shape[2] - 1) // 4
        noise = torch.randn(count, self.z_dim, latent_frames, x.shape[3] // 8, x.shape[4] // 8, device=x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
            y, mean, log_var = self._forward(x, noise)
        squared = (y - x).square().mean(dim=(1, 3, 4))  # (B, T)
        groups = [squared[:, :1]] + [squared[:, i : i + 4] for i in range(1, x.shape[2], 4)]
        rmse = torch.stack([(g.mean(1) + 1e-6).sqrt() for g in groups], dim=1)
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean()
        loss = rmse.mean() + 0.1 * (y - x).abs().mean() + self.kl_weight * kl
        metrics = {"psnr": (-10 * torch.log10(squared.detach().mean(1).clamp(min=1e-8) / 4)).mean(), "kl": kl.detach()}
        if self.code_weight and not images:
            with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
                codes = self._image_codes(x[:, :, 4::4])
            gap = (mean[:, :, 1:] - codes).square().mean() / codes.square().mean().clamp(min=1e-3)
            loss = loss + self.code_weight * gap
            metrics["code_gap"] = gap.detach()
        return loss, metrics

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        images = int(batch) < self.image_steps
        self._idle = self._temporal if images and self.trainer.world_size > 1 else []
        # Several processes wait for the gradient of every weight, and single images never reach these.
        return loss + sum(0 * p.sum() for p in self._idle)

    def on_after_backward(self) -> None:
        for parameter in self._idle:
            parameter.grad = None  # as with one process: AdamW leaves a weight without gradient alone


@torch.no_grad()
def latent_statistics(vae: AutoencoderKLWan, clips: Tensor, batch: int = 64) -> tuple[list[float], list[float]]:
    """Per-channel mean and standard deviation of the latents of clips (M, T, 3, H, W) uint8."""
    device = next(vae.parameters()).device
    means = []
    for part in clips.split(batch):
        x = part.to(device).transpose(1, 2).float() / 127.5 - 1
        means.append(encode_clip(vae, x)[0].float().transpose(0, 1).flatten(1))
    stacked = torch.cat(means, dim=1)
    return stacked.mean(1).tolist(), stacked.std(1).tolist()


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLWan, clips: Tensor, batch: int = 32) -> Tensor:
    """PSNR in dB (M, T) of clips (M, T, 3, H, W) uint8 through the VAE, clamped to the pixel range."""
    device = next(vae.parameters()).device
    rows = []
    for part in clips.split(batch):
        x = part.to(device).transpose(1, 2).float() / 127.5 - 1
        y = decode_clip(vae, encode_clip(vae, x)[0]).float().clamp(-1, 1)
        mse = F.mse_loss(y, x, reduction="none").mean(dim=(1, 3, 4)) / 4
        rows.append(-10 * torch.log10(mse.clamp(min=1e-8)))
    return torch.cat(rows).cpu()
