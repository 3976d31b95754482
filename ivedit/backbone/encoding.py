"""Pixels to latents and back, and text to states, as `WanPipeline` does them.

The VAE stays float32 and works on as many clips at once as fit a fixed budget, so that memory does not grow with the
batch. Texts are cleaned, tokenised and zero-padded *after* the encoder, which is what the frozen cross-attention was
trained on.
"""

from __future__ import annotations

import html
import re
from typing import Any

import torch
from torch import Tensor, nn

from ivedit.data.text import TextStates
from ivedit.errors import IveditError

__all__ = ["clean_prompt", "decode_pixels", "encode_latents", "encode_texts"]

# Values of the VAE's first feature map (clips x frames of one causal chunk x pixels x channels) that are held at a
# time. On a GPU about 1 GB in float32; on a CPU more than four short clips at once are slower per clip.
_GPU_VALUES = 2**28
_CPU_VALUES = 2**22
_CHUNK_FRAMES = 4
_TEXTS_AT_ONCE = 64


def clips_at_once(frames: int, height: int, width: int, channels: int, device: torch.device) -> int:
    """How many clips of (frames, 3, height, width) pixels go through the VAE together; at least one."""
    values = min(frames, _CHUNK_FRAMES) * height * width * channels
    budget = _CPU_VALUES if device.type == "cpu" else _GPU_VALUES
    return max(1, budget // values)


def encode_latents(vae: Any, pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Posterior mode of the VAE, normalised.

    Args:
        vae: an `AutoencoderKLWan`.
        pixels: (B, T, 3, H, W) in [0, 1].
        mean, std: (1, Z, 1, 1, 1) of the latents.

    Returns:
        (B, Z, F, h, w) float32.
    """
    batch, frames, _, height, width = pixels.shape
    patch = vae.config.patch_size or 1
    step = clips_at_once(frames, height // patch, width // patch, vae.config.base_dim, mean.device)
    parts = []
    with torch.no_grad(), torch.autocast(mean.device.type, enabled=False):
        for start in range(0, batch, step):
            clip = pixels[start : start + step].to(mean.device, torch.float32)
            clip = (clip.permute(0, 2, 1, 3, 4) * 2).sub_(1)  # a long clip is large: no second copy
            parts.append((vae.encode(clip).latent_dist.mode() - mean) / std)
    return torch.cat(parts)


def decode_pixels(vae: Any, latents: Tensor, mean: Tensor, std: Tensor, space: int) -> Tensor:
    """Inverse of `encode_latents`: (B, Z, F, h, w) -> (B, T, 3, H, W) float32, clamped to [0, 1]."""
    batch, _, frames, height, width = latents.shape
    patch = vae.config.patch_size or 1
    channels = vae.config.decoder_base_dim or vae.config.base_dim
    full = _CHUNK_FRAMES if frames > 1 else 1
    step = clips_at_once(full, height * space // patch, width * space // patch, channels, mean.device)
    parts = []
    with torch.no_grad(), torch.autocast(mean.device.type, enabled=False):
        for start in range(0, batch, step):
            z = latents[start : start + step].to(mean.device, torch.float32) * std + mean
            clip = vae.decode(z, return_dict=False)[0].float()
            parts.append(clip.add_(1).div_(2).clamp_(0, 1).permute(0, 2, 1, 3, 4))
            del clip
    return torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()


def clean_prompt(text: str) -> str:
    """The cleaning `WanPipeline` applies to a prompt: mojibake (where ftfy is installed), HTML, white space."""
    from diffusers.utils import is_ftfy_available

    if is_ftfy_available():
        import ftfy

        text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text)).strip()
    return re.sub(r"\s+", " ", text).strip()


def encode_texts(tokenizer: Any, encoder: nn.Module, texts: list[str], length: int) -> TextStates:
    """States of `texts`, zero behind each text's last token.

    Args:
        tokenizer: with a padding token.
        encoder: a T5-style encoder that returns `last_hidden_state`.
        texts: any number, "" included (dropped text).
        length: L; longer texts are cut.

    Returns:
        states (B, L, D) in the encoder's type and the mask of real tokens.

    Raises:
        IveditError: no texts.
    """
    if not texts:
        raise IveditError("encode_text was given no texts; pass at least one (an empty string is a text)")
    weight = next(encoder.parameters())
    states, masks = [], []
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            tokens = tokenizer(
                [clean_prompt(text) for text in texts[start : start + _TEXTS_AT_ONCE]],
                padding="max_length",
                max_length=length,
                truncation=True,
                add_special_tokens=True,
                return_attention_mask=True,
                return_tensors="pt",
            )
            mask = tokens.attention_mask.to(weight.device)
            hidden = encoder(tokens.input_ids.to(weight.device), mask).last_hidden_state
            real = mask.gt(0)
            states.append(torch.where(real.unsqueeze(-1), hidden, torch.zeros_like(hidden)))
            masks.append(real)
    return TextStates(torch.cat(states), torch.cat(masks))
