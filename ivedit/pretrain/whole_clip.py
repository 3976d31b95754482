"""Run Wan's causal video VAE over a whole clip at once.

diffusers' ``AutoencoderKLWan`` walks a clip in chunks of one and then four frames and carries the convolutions'
history in a cache: little memory, but thousands of small kernels. Training wants the opposite. Every layer is causal
in time, so the chunked walk equals one pass over the whole clip with zero padding on the left, once the two temporal
resampling layers get their rule for the first frame: it is passed by, never mixed in (downsampling: the first frame
is kept and ``time_conv`` runs over the sequence with stride 2; upsampling: the first frame is kept and ``time_conv``
sees only the frames after it). ``tests/pretrain`` holds the equality with diffusers' own ``encode`` and ``decode``.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify
from torch import Tensor, nn

__all__ = ["build_vae", "decode_clip", "encode_clip", "inflate"]


def build_vae(base_dim: int, *, z_dim: int = 16) -> AutoencoderKLWan:
    """A small Wan VAE: 8x in space (2x of it by patches), 4x in time, ``z_dim`` latent channels."""
    return AutoencoderKLWan(
        base_dim=base_dim,
        z_dim=z_dim,
        dim_mult=[1, 2, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[True, True],
        latents_mean=[0.0] * z_dim,
        latents_std=[1.0] * z_dim,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
    )


def inflate(vae: AutoencoderKLWan) -> None:
    """Start the temporal layers as those of an image VAE, in place.

    Causal 3x3x3 kernels keep only their last time slice (which is all that a single frame ever sees), the temporal
    downsampling passes the last frame of each pair on and the upsampling repeats its frame: a clip is then coded
    frame by frame. The usual way to grow an image VAE into a video VAE.
    """
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, WanResample) and hasattr(module, "time_conv"):
                weight, bias = module.time_conv.weight, module.time_conv.bias
                eye = torch.eye(module.dim, device=weight.device, dtype=weight.dtype)
                weight.zero_()
                bias.zero_()
                if module.mode == "downsample3d":
                    weight[:, :, 2, 0, 0] = eye
                else:
                    weight[: module.dim, :, 2, 0, 0] = eye
                    weight[module.dim :, :, 2, 0, 0] = eye
            elif isinstance(module, nn.Conv3d) and module.kernel_size == (3, 3, 3):
                module.weight[:, :, :2] = 0


def _per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a 2D layer to every frame of x: (B, C, T, H, W)."""
    b, c, t, h, w = x.shape
    y = layer(x.transpose(1, 2).reshape(b * t, c, h, w))
    return y.reshape(b, t, *y.shape[1:]).transpose(1, 2)


def _resample(layer: WanResample, x: Tensor) -> Tensor:
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        first, rest = x[:, :, :1], x[:, :, 1:]
        b, c, t, h, w = rest.shape
        rest = layer.time_conv(rest).reshape(b, 2, c, t, h, w)
        rest = torch.stack((rest[:, 0], rest[:, 1]), dim=3).reshape(b, c, 2 * t, h, w)
        x = torch.cat((first, rest), dim=2)
    x = _per_frame(layer.resample, x)
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat((x[:, :, :1], layer.time_conv(x)), dim=2)
    return x


def encode_clip(vae: AutoencoderKLWan, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the latents.

    Args:
        clip: (B, 3, T, H, W) in [-1, 1], T = 1 + 4k.

    Returns:
        Two tensors (B, Z, 1 + k, H / 8, W / 8), not normalised.
    """
    encoder = vae.encoder
    x = encoder.conv_in(patchify(clip, vae.config.patch_size))
    for layer in encoder.down_blocks:
        x = _resample(layer, x) if isinstance(layer, WanResample) else layer(x)
    x = encoder.conv_out(encoder.nonlinearity(encoder.norm_out(encoder.mid_block(x))))
    mean, log_var = vae.quant_conv(x).chunk(2, dim=1)
    return mean, log_var.clamp(-30.0, 20.0)


def decode_clip(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Pixels (B, 3, T, H, W), not clamped, of latents (B, Z, 1 + k, h, w) that are not normalised."""
    decoder = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = resnet(x)
        if block.upsamplers is not None:
            x = _resample(block.upsamplers[0], x)
    x = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))
    return unpatchify(x, vae.config.patch_size)
