"""The VAE over a whole clip at once is diffusers' own walk in chunks, and starts as an image VAE."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan

from ivedit.pretrain.whole_clip import build_vae, decode_clip, encode_clip, inflate


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    vae = build_vae(8, z_dim=4).eval().requires_grad_(False)
    for name, weight in vae.named_parameters():  # fresh norms and zero biases would hide mistakes
        if weight.ndim == 1 or "gamma" in name:
            weight.add_(0.3 * torch.randn_like(weight))
    return vae


def inflated() -> AutoencoderKLWan:
    torch.manual_seed(1)
    vae = build_vae(8, z_dim=4).eval().requires_grad_(False)
    inflate(vae)
    return vae


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_encoding_a_clip_at_once_equals_encoding_it_in_chunks(vae: AutoencoderKLWan, frames: int):
    clip = torch.rand(2, 3, frames, 32, 48, generator=torch.Generator().manual_seed(frames)) * 2 - 1
    mean, log_var = encode_clip(vae, clip)
    chunked = vae.encode(clip).latent_dist
    assert mean.shape == (2, 4, 1 + frames // 4, 4, 6)
    torch.testing.assert_close(mean, chunked.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(log_var, chunked.logvar, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_decoding_a_clip_at_once_equals_decoding_it_in_chunks(vae: AutoencoderKLWan, frames: int):
    latents = torch.randn(2, 4, 1 + frames // 4, 4, 6, generator=torch.Generator().manual_seed(frames))
    clip = decode_clip(vae, latents)
    assert clip.shape == (2, 3, frames, 32, 48)
    torch.testing.assert_close(clip.clamp(-1, 1), vae.decode(latents).sample, atol=1e-5, rtol=1e-4)


def test_frames_see_no_later_ones(vae: AutoencoderKLWan):
    clip = torch.rand(1, 3, 9, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    other = clip.clone()
    other[:, :, 5:] = 0
    a, b = encode_clip(vae, clip)[0], encode_clip(vae, other)[0]
    torch.testing.assert_close(a[:, :, :2], b[:, :, :2], atol=1e-6, rtol=1e-5)
    assert (a[:, :, 2] - b[:, :, 2]).abs().max() > 1e-4


def test_inflated_a_still_clip_has_the_images_latents_in_every_frame():
    vae = inflated()
    image = torch.rand(2, 3, 1, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    one = encode_clip(vae, image)[0]
    many = encode_clip(vae, image.expand(-1, -1, 17, -1, -1))[0]
    torch.testing.assert_close(many, one.expand(-1, -1, 5, -1, -1), atol=1e-5, rtol=1e-4)


def test_inflated_each_latent_frame_codes_the_last_of_its_frames():
    vae = inflated()
    clip = torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(4)) * 2 - 1
    latents = encode_clip(vae, clip)[0]
    alone = [encode_clip(vae, clip[:, :, t : t + 1])[0] for t in (0, 4, 8)]
    torch.testing.assert_close(latents, torch.cat(alone, dim=2), atol=1e-5, rtol=1e-4)


def test_inflated_a_latent_frame_decodes_to_four_equal_frames():
    vae = inflated()
    latents = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    clip = decode_clip(vae, latents)
    alone = [decode_clip(vae, latents[:, :, f : f + 1]) for f in range(3)]
    expected = torch.cat([alone[0], alone[1].expand(-1, -1, 4, -1, -1), alone[2].expand(-1, -1, 4, -1, -1)], dim=2)
    torch.testing.assert_close(clip, expected, atol=1e-5, rtol=1e-4)
