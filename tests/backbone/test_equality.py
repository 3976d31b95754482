"""The frozen transformer run through our openings is diffusers' own, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbone.tiny import tiny_backbone, tiny_transformer
from ivedit.backbone import Backbone, TextStates
from ivedit.backbone.blocks import attention, feed_forward
from ivedit.errors import IveditError

SHAPES = [((1, 1, 1), 1, 6, 10), ((1, 1, 1), 5, 7, 9), ((1, 2, 2), 1, 6, 10), ((1, 2, 2), 5, 6, 10)]


def inputs(backbone: Backbone, frames: int, height: int, width: int, batch: int = 2):
    torch.manual_seed(7)
    latents = torch.randn(batch, backbone.spec.latent_channels, frames, height, width)
    sigma = torch.linspace(0.2, 1.0, batch)
    return latents, sigma, backbone.encode_text(["make the red circle blue", ""][:batch])


@torch.no_grad()
@pytest.mark.parametrize(("patch", "frames", "height", "width"), SHAPES)
def test_velocity_without_edits_equals_the_diffusers_transformer_bit_for_bit(patch, frames, height, width):
    backbone = tiny_backbone(patch=patch)
    latents, sigma, text = inputs(backbone, frames, height, width)
    expected = backbone.transformer(latents, sigma * 1000, text.states).sample
    assert torch.equal(backbone.velocity(latents, sigma, text), expected)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5])
def test_per_token_timesteps_equal_the_diffusers_transformer_bit_for_bit(frames):
    """Wan2.2-TI2V's pipeline sends (B, S) timesteps; different ones per token must be told apart too."""
    backbone = tiny_backbone(patch=(1, 2, 2))
    latents, sigma, text = inputs(backbone, frames, 6, 10)
    grid = backbone.grid(latents)
    per_token = sigma[:, None] * torch.rand(2, grid.frames * grid.per_frame)
    expected = backbone.transformer(latents, per_token * 1000, text.states).sample
    assert torch.equal(backbone.velocity(latents, per_token, text), expected)
    equal = sigma[:, None].expand(2, grid.frames * grid.per_frame)
    torch.testing.assert_close(
        backbone.velocity(latents, equal, text), backbone.velocity(latents, sigma, text), rtol=1e-4, atol=1e-5
    )


@settings(max_examples=15, deadline=None)
@given(
    frames=st.integers(1, 4), rows=st.integers(1, 6), columns=st.integers(1, 6), ph=st.integers(1, 2),
    pw=st.integers(1, 3), batch=st.integers(1, 2),
)  # fmt: skip
def test_any_grid_and_patch_equals_diffusers(frames, rows, columns, ph, pw, batch):
    backbone = Backbone.from_parts(tiny_transformer(patch=(1, ph, pw), blocks=1))
    torch.manual_seed(frames)
    latents = torch.randn(batch, 4, frames, rows * ph, columns * pw)
    text = TextStates(torch.randn(batch, 5, 16), torch.ones(batch, 5, dtype=torch.bool))
    sigma = torch.rand(batch)
    with torch.no_grad():
        expected = backbone.transformer(latents, sigma * 1000, text.states).sample
        assert torch.equal(backbone.velocity(latents, sigma, text), expected)


@torch.no_grad()
def test_bfloat16_storage_keeps_float32_where_wan_does_and_stays_close():
    exact, half = tiny_backbone(), tiny_backbone(dtype=torch.bfloat16)
    kept = ("rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
    for name, weight in [*half.transformer.named_parameters(), *half.transformer.named_buffers()]:
        assert weight.dtype == (torch.float32 if any(k in name for k in kept) else torch.bfloat16), name
    latents, sigma, text = inputs(exact, 5, 6, 10)
    reference = exact.velocity(latents, sigma, text)
    ours = (half.velocity(latents, sigma, text) - reference).square().mean().sqrt()
    theirs = half.transformer(latents.bfloat16(), sigma * 1000, text.states.bfloat16()).sample.float()
    assert ours < 0.01 * reference.std()
    assert ours <= (theirs - reference).square().mean().sqrt()  # the residual stream stays float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = exact.velocity(latents, sigma, text)
    assert (mixed - reference).square().mean().sqrt() < 0.01 * reference.std()


@torch.no_grad()
def test_openings_with_zero_deltas_equal_the_frozen_layers_and_a_negated_pair_cancels():
    backbone = tiny_backbone()
    block = backbone.blocks[1]
    x = torch.randn(2, 60, backbone.spec.width)
    rotary = backbone.rotary(backbone.grid(torch.empty(2, 4, 1, 6, 10)))
    zero = dict.fromkeys(("query", "key", "value", "out"), lambda tokens: 0.0)
    frozen = attention(block.attn1, x, rotary, **zero)
    assert torch.equal(frozen, block.attn1(x, None, None, rotary))
    assert torch.count_nonzero(frozen + attention(block.attn1, x, rotary, **zero, sign=-1.0)) == 0
    assert torch.equal(feed_forward(block.ffn, x, up=zero["out"], down=zero["out"]), block.ffn(x))


@torch.no_grad()
def test_source_features_are_what_each_block_reads_and_stop_at_the_last_one_asked():
    backbone = tiny_backbone()
    latents, _, text = inputs(backbone, 1, 6, 10)
    seen, ran = [], []
    for block in backbone.blocks:
        block.attn1.to_q.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
        block.ffn.register_forward_pre_hook(lambda m, args: ran.append(m))
    features = backbone.source_features(latents, text, [0, 1], per_frame=True)
    assert len(seen) == len(ran) == 1  # block 1's attention and feed-forward, and block 2, were not computed
    assert backbone.source_passes == 1
    backbone.velocity(latents, torch.zeros(2), text)
    for feature, read in zip(features, seen[1:], strict=False):
        assert torch.equal(feature[:, 0], read)


@torch.no_grad()
def test_per_frame_source_is_each_frame_alone_and_joint_is_not():
    backbone = tiny_backbone()
    latents, _, text = inputs(backbone, 5, 7, 9, batch=1)
    clip = backbone.source_features(latents, text, [0, 2], per_frame=True)
    joint = backbone.source_features(latents, text, [0, 2], per_frame=False)
    for frame in range(5):
        alone = backbone.source_features(latents[:, :, frame : frame + 1], text, [0, 2], per_frame=False)
        for level in (0, 1):
            torch.testing.assert_close(clip[level][:, frame], alone[level][:, 0], rtol=1e-5, atol=1e-5)
        assert (joint[1][:, frame] - alone[1][:, 0]).abs().max() > 1e-3
    frames_as_batch = backbone.source_features(
        latents.transpose(1, 2).flatten(0, 1).unsqueeze(2), text.repeat_interleave(5), [0, 2], per_frame=True
    )
    for level in (0, 1):  # the clip's one text is read once for all frames, which rounds otherwise
        torch.testing.assert_close(clip[level][0], frames_as_batch[level][:, 0], rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradient():
    grads = []
    for checkpointing in (False, True):
        backbone = tiny_backbone()
        backbone.gradient_checkpointing = checkpointing
        latents, sigma, text = inputs(backbone, 1, 6, 10)
        latents.requires_grad_(True)
        backbone.velocity(latents, sigma, text).square().sum().backward()
        grads.append(latents.grad)
    assert torch.equal(*grads)


def test_latents_that_do_not_fit_are_refused_by_name():
    backbone = tiny_backbone(patch=(1, 2, 2))
    text = backbone.encode_text(["a"])
    with pytest.raises(IveditError, match="7x10 are not divisible by the patch 2x2"):
        backbone.velocity(torch.zeros(1, 4, 1, 7, 10), torch.zeros(1), text)
    with pytest.raises(IveditError, match="16 channels"):
        backbone.velocity(torch.zeros(1, 16, 1, 6, 10), torch.zeros(1), text)


def test_frozen_means_frozen_whatever_the_surrounding_module_asks():
    backbone = tiny_backbone()
    torch.nn.Sequential(backbone).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
