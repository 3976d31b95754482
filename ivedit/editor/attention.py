"""2D attention inside each frame, from target tokens to source tokens, started from the block's frozen 3D attention.

Positions are the frame-0 slice of the backbone's own rotary tables, so a copied query finds a copied key where the
frozen attention would within one frame. For a width r below C, r / head_dim whole heads are kept, those whose value
circuit (O V) is largest: head size, rotary angles and the meaning of each head stay exact. Other widths would cut a
head's rotary pairs apart and are refused.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivedit.backbone.blocks import rotate
from ivedit.backbone.spec import BackboneSpec
from ivedit.editor.context import ModuleText
from ivedit.editor.padded import KeyMask, attend
from ivedit.errors import ConfigError

__all__ = [
    "HeadNorm",
    "SpatialAttention",
    "TextKeys",
    "aligned_map",
    "check_width",
    "copy_linear",
    "kept_rows",
    "linear_together",
    "spatial_attention_size",
    "split_heads",
]

Rotary = tuple[Tensor, Tensor]


def check_width(width: int | None, spec: BackboneSpec) -> int:
    """Inner width r: None is the backbone's C.

    Raises:
        ConfigError: r is above C or no multiple of the head size.
    """
    if width is None:
        return spec.width
    if width > spec.width or width % spec.head_dim:
        fits = ", ".join(str(spec.head_dim * n) for n in range(1, spec.heads + 1))
        raise ConfigError(
            f"editor.width: {width} does not fit {spec.name}, whose heads are {spec.head_dim} wide and C is "
            f"{spec.width}; choose one of {fits}, or null for C"
        )
    return width


@torch.no_grad()
def kept_rows(attn: Any, width: int) -> Tensor:
    """Rows of a frozen attention's projections that belong to the `width` / head size heads with the largest O V."""
    if width == attn.to_q.weight.shape[0]:
        return torch.arange(width)
    heads = attn.heads
    size = attn.to_q.weight.shape[0] // heads
    # Where the weights are: for 40 blocks of width 5120 a CPU would need minutes.
    value = attn.to_v.weight.detach().float().unflatten(0, (heads, size))
    out = attn.to_out[0].weight.detach().float().unflatten(1, (heads, size)).transpose(0, 1)
    # ||O_h V_h||_F^2 = trace((O^T O)(V V^T)), without forming the C x C product.
    strength = torch.einsum("hij,hji->h", out.transpose(1, 2) @ out, value @ value.transpose(1, 2))
    chosen = torch.topk(strength, width // size).indices.sort().values.cpu()
    return (chosen[:, None] * size + torch.arange(size)).flatten()


@torch.no_grad()
def copy_linear(target: nn.Linear, source: Any, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    """Start `target` as the frozen linear `source`, restricted to output `rows` and input `columns`."""
    weight, bias = source.weight.detach(), source.bias.detach()
    if rows is not None:
        weight, bias = weight[rows.to(weight.device)], bias[rows.to(bias.device)]
    if columns is not None:
        weight = weight[:, columns.to(weight.device)]
    target.weight.copy_(weight)
    target.bias.copy_(bias)


def zero_linear(linear: nn.Linear) -> None:
    """Weight and bias 0."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


def linear_together(x: Tensor, *linears: nn.Linear) -> tuple[Tensor, ...]:
    """What each of several linear layers makes of x (..., inputs), in one matrix product.

    Narrow products leave most of a GPU waiting, and in the backward pass each would give x a gradient of its own.
    """
    weight, bias = (torch.cat([getattr(linear, name) for linear in linears]) for name in ("weight", "bias"))
    return F.linear(x, weight, bias).split([linear.out_features for linear in linears], dim=-1)


def split_heads(tokens: Tensor, head_dim: int) -> Tensor:
    """(..., N, r) -> (..., heads, N, head size)."""
    return tokens.unflatten(-1, (-1, head_dim)).transpose(-2, -3)


class HeadNorm(nn.Module):
    """RMS norm over all heads of a query or key, as Wan's, started from the frozen one's weight."""

    def __init__(self, frozen: Any, rows: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(frozen.weight.detach().float().cpu()[rows].clone())
        self.eps = frozen.eps

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., r) -> (..., r) in the same type; the mean square is taken in float32."""
        # Autocast norms in float32 on a GPU and would leave the result there.
        return F.rms_norm(tokens, self.weight.shape, self.weight.to(tokens.dtype), self.eps).to(tokens.dtype)


class TextKeys(nn.Module):
    """Keys and values of text tokens, started from the block's frozen cross-attention (which reads the same tokens).

    Text has no place in the frame: its keys are not turned, which puts it at position 0.
    """

    def __init__(self, attn2: Any, width: int, head_dim: int) -> None:
        super().__init__()
        channels = attn2.to_k.weight.shape[1]
        rows = kept_rows(attn2, width)
        self.head_dim = head_dim
        self.key = nn.Linear(channels, width)
        self.value = nn.Linear(channels, width)
        self.norm = HeadNorm(attn2.norm_k, rows)
        copy_linear(self.key, attn2.to_k, rows)
        copy_linear(self.value, attn2.to_v, rows)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, C) -> keys and values (B, heads, L, head size)."""
        key, value = linear_together(tokens, self.key, self.value)
        return split_heads(self.norm(key), self.head_dim), split_heads(value, self.head_dim)

    def join(self, key: Tensor, value: Tensor, text: ModuleText) -> tuple[Tensor, Tensor, KeyMask]:
        """Put text behind source keys and values (B*F, heads, N, head size); also which keys are real."""
        text_key, text_value = self(text.tokens)
        if text.frames > 1:
            text_key = text_key.repeat_interleave(text.frames, dim=0)
            text_value = text_value.repeat_interleave(text.frames, dim=0)
        return torch.cat((key, text_key), dim=2), torch.cat((value, text_value), dim=2), text.joint


class NoTextKeys(nn.Module):
    """Source tokens alone are attended to."""

    def join(self, key: Tensor, value: Tensor, text: ModuleText) -> tuple[Tensor, Tensor, None]:
        """Keys and values as they are, and no mask."""
        return key, value, None


class SpatialAttention(nn.Module):
    """O SDPA(Q x, K s, V y) inside each frame, with optional text keys.

    Args:
        block: the frozen `WanTransformerBlock` to start from.
        width: r, a multiple of the head size.
        head_dim: head size.
        text: real text tokens join keys and values.
        zero_out: O starts at 0 (the whole module then starts as nothing), else as the frozen output projection.
    """

    def __init__(self, block: Any, width: int, head_dim: int, *, text: bool, zero_out: bool) -> None:
        super().__init__()
        attn = block.attn1
        channels = attn.to_q.weight.shape[1]
        rows = kept_rows(attn, width)
        self.head_dim = head_dim
        self.query = nn.Linear(channels, width)
        self.key = nn.Linear(channels, width)
        self.value = nn.Linear(channels, width)
        self.out = nn.Linear(width, channels)
        self.norm_q = HeadNorm(attn.norm_q, rows)
        self.norm_k = HeadNorm(attn.norm_k, rows)
        for mine, frozen in ((self.query, attn.to_q), (self.key, attn.to_k), (self.value, attn.to_v)):
            copy_linear(mine, frozen, rows)
        if zero_out:
            zero_linear(self.out)
        else:
            copy_linear(self.out, attn.to_out[0], columns=rows)
        self.text = TextKeys(block.attn2, width, head_dim) if text else NoTextKeys()

    def turned_queries(self, q: Tensor, rotary: Rotary) -> Tensor:
        """Q x (B, F, N, r) -> (B, F, heads, N, head size), normed and turned."""
        return rotate(split_heads(self.norm_q(q), self.head_dim), *rotary)

    def turned_keys(self, k: Tensor, rotary: Rotary) -> Tensor:
        """K s (B, F, N, r) -> (B, F, heads, N, head size), normed and turned."""
        return rotate(split_heads(self.norm_k(k), self.head_dim), *rotary)

    def values(self, y: Tensor) -> Tensor:
        """(B, F, N, C) -> (B, F, heads, N, head size)."""
        return split_heads(self.value(y), self.head_dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, text: ModuleText) -> Tensor:
        """Mixed values before the output projection, (B, F, N, r); the arguments are as the methods above give."""
        batch, frames = query.shape[:2]
        keys, values, mask = self.text.join(key.flatten(0, 1), value.flatten(0, 1), text)
        mixed = attend(query.flatten(0, 1), keys, values, mask)
        return mixed.transpose(1, 2).flatten(2).unflatten(0, (batch, frames))


def spatial_attention_size(channels: int, width: int, *, text: bool) -> int:
    """Number of weights of a `SpatialAttention`."""
    size = 3 * (channels + 1) * width + (width + 1) * channels + 2 * width
    return size + (2 * (channels + 1) * width + width if text else 0)


@torch.no_grad()
def aligned_map(block: Any, width: int) -> nn.Module:
    """Wd: the linear map that a token's attention to itself alone would apply, O V of the frozen attention.

    One C x C matrix at full width; its two factors over the kept heads (C x r, r x C) below.
    """
    attn = block.attn1
    channels = attn.to_v.weight.shape[1]
    rows = kept_rows(attn, width)
    value, out = nn.Linear(channels, width), nn.Linear(width, channels)
    copy_linear(value, attn.to_v, rows)
    copy_linear(out, attn.to_out[0], columns=rows)
    if width < channels:
        return nn.Sequential(value, out)
    joined = nn.Linear(channels, channels)
    joined.weight.copy_(out.weight @ value.weight)
    joined.bias.copy_(out.weight @ value.bias + out.bias)
    return joined
