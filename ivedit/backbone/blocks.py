"""One frozen Wan block, written out so that an edit can be added where the method needs it.

diffusers' `WanTransformerBlock.forward` is closed: nothing can be added between its self-attention and its
cross-attention. `run_block` is the same arithmetic in the same order (equal bit for bit in float32, see
`tests/backbone/test_equality.py`) with three openings: the self-attention, what is added to the residual stream
beside it, and the feed-forward network. In low precision the residual stream itself stays float32, as in Wan's own
code: a small edit would otherwise be lost in bfloat16's rounding of a large stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "BlockModulation",
    "Conditioning",
    "attention",
    "cross_attention",
    "feed_forward",
    "modulated_input",
    "output_head",
    "rotate",
    "run_block",
    "source_block",
]

Rotary = tuple[Tensor, Tensor]
Delta = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Conditioning:
    """What every block of one pass reads besides the stream.

    Attributes:
        time: (B, C), or (B, S, C) for per-token timesteps.
        modulation: (B, 6, C) or (B, S, 6, C).
        text: (B, L, C) embedded text, padding included, as the frozen cross-attention reads it.
        dtype: type of the blocks' matrix products.
    """

    time: Tensor
    modulation: Tensor
    text: Tensor
    dtype: torch.dtype


@dataclass(frozen=True)
class BlockModulation:
    """Shift, scale and gate of a block's self-attention and feed-forward, float32, broadcastable to (B, S, C)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor
    ffn_shift: Tensor
    ffn_scale: Tensor
    ffn_gate: Tensor

    @staticmethod
    def of(block: Any, conditioning: Conditioning) -> BlockModulation:
        """Add the block's own table to the projected timestep."""
        table = block.scale_shift_table
        temb = conditioning.modulation.float()
        if temb.ndim == 4:
            parts = [p.squeeze(2) for p in (table.unsqueeze(0) + temb).chunk(6, dim=2)]
        else:
            parts = list((table + temb).chunk(6, dim=1))
        return BlockModulation(*parts)


def modulated_input(block: Any, hidden: Tensor, modulation: BlockModulation, dtype: torch.dtype) -> Tensor:
    """x of the method: the stream after norm1 and modulation, (B, S, C) in `dtype`.

    It is the space in which the block's own queries, keys and values live.
    """
    return (block.norm1(hidden.float()) * (1 + modulation.scale) + modulation.shift).to(dtype)


def run_block(
    block: Any,
    hidden: Tensor,
    conditioning: Conditioning,
    rotary: Rotary,
    *,
    attend: Callable[[Tensor], Tensor] | None = None,
    residual: Callable[[Tensor], Tensor] | None = None,
    ffn: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """One block of the stream, h <- h + gate * Attn3D(x) + edit, then cross-attention and feed-forward.

    Args:
        block: a `WanTransformerBlock`.
        hidden: (B, S, C) float32 residual stream.
        conditioning: timestep and text of this pass.
        rotary: cos and sin tables as `Backbone.rotary` gives them, (1, S, 1, head size) each.
        attend: replaces the block's self-attention of x; its result is multiplied by the block's gate.
        residual: x -> (B, S, C), added to the stream beside the gated self-attention.
        ffn: replaces the feed-forward network.
    """
    modulation = BlockModulation.of(block, conditioning)
    x = modulated_input(block, hidden, modulation, conditioning.dtype)
    return _finish_block(block, hidden, x, modulation, conditioning, rotary, attend, residual, ffn)


def source_block(block: Any, hidden: Tensor, conditioning: Conditioning, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """One block of the source stream: x, as `modulated_input` gives it, and the stream behind the block."""
    modulation = BlockModulation.of(block, conditioning)
    x = modulated_input(block, hidden, modulation, conditioning.dtype)
    return x, _finish_block(block, hidden, x, modulation, conditioning, rotary)


def _finish_block(
    block: Any,
    hidden: Tensor,
    x: Tensor,
    modulation: BlockModulation,
    conditioning: Conditioning,
    rotary: Rotary,
    attend: Callable[[Tensor], Tensor] | None = None,
    residual: Callable[[Tensor], Tensor] | None = None,
    ffn: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    dtype = conditioning.dtype
    mixed = attention(block.attn1, x, rotary) if attend is None else attend(x)
    hidden = hidden.float() + mixed * modulation.gate
    if residual is not None:
        hidden = hidden + residual(x)
    y = block.norm2(hidden.float()).to(dtype)
    hidden = hidden + cross_attention(block.attn2, y, conditioning.text)
    y = (block.norm3(hidden.float()) * (1 + modulation.ffn_scale) + modulation.ffn_shift).to(dtype)
    out = block.ffn(y) if ffn is None else ffn(y)
    return hidden.float() + out.float() * modulation.ffn_gate


def output_head(transformer: Any, hidden: Tensor, conditioning: Conditioning) -> Tensor:
    """Final norm, modulation and projection: (B, S, C) -> (B, S, ph * pw * Z)."""
    table = transformer.scale_shift_table
    if conditioning.time.ndim == 3:
        shift, scale = (p.squeeze(2) for p in (table.unsqueeze(0) + conditioning.time.unsqueeze(2)).chunk(2, dim=2))
    else:
        shift, scale = (table + conditioning.time.unsqueeze(1)).chunk(2, dim=1)
    hidden = (transformer.norm_out(hidden.float()) * (1 + scale) + shift).to(conditioning.dtype)
    return transformer.proj_out(hidden)


def rotate(tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Wan's rotary embedding of tokens (..., head size), computed in the tables' precision, in the tokens' type.

    Neighbours (a, b) become (a cos - b sin, b cos + a sin): each number times cos plus its neighbour times the sin of
    its place, which is negative at even ones. So it is one pass without strides, and the same bits as pair by pair.
    """
    neighbours = tokens.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (tokens * cos + neighbours * sin).type_as(tokens)


def attention(
    attn: Any,
    x: Tensor,
    rotary: Rotary,
    *,
    query: Delta | None = None,
    key: Delta | None = None,
    value: Delta | None = None,
    out: Delta | None = None,
    sign: float = 1.0,
) -> Tensor:
    """A frozen `WanAttention` over x (B, S, C), where asked with something added to each of its four projections.

    It stands in for diffusers' processor: that one keeps queries and keys, and so the mixed values, in the float32
    that autocast norms in, and casts them again and again.

    `sign` multiplies the frozen output projection only: with deltas that are zero, the calls with +1 and -1 cancel
    exactly.
    """
    q = attn.norm_q(_added(attn.to_q(x), query, x)).unflatten(2, (attn.heads, -1))
    k = attn.norm_k(_added(attn.to_k(x), key, x)).unflatten(2, (attn.heads, -1))
    v = _added(attn.to_v(x), value, x).unflatten(2, (attn.heads, -1))
    q, k = rotate(q, *rotary).to(v.dtype), rotate(k, *rotary).to(v.dtype)
    mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    mixed = mixed.transpose(1, 2).flatten(2)
    frozen = attn.to_out[0](mixed)
    return _added(frozen if sign == 1.0 else sign * frozen, out, mixed)


def _added(frozen: Tensor, delta: Delta | None, x: Tensor) -> Tensor:
    return frozen if delta is None else frozen + delta(x)


def cross_attention(attn: Any, y: Tensor, text: Tensor) -> Tensor:
    """A frozen `WanAttention` from y (B, S, C) to text (B, L, C), or (1, L, C) where all samples read the same."""
    q = attn.norm_q(attn.to_q(y)).unflatten(2, (attn.heads, -1))
    k = attn.norm_k(attn.to_k(text)).unflatten(2, (attn.heads, -1))
    v = attn.to_v(text).unflatten(2, (attn.heads, -1))
    k, v = k.to(v.dtype).expand(len(y), -1, -1, -1), v.expand(len(y), -1, -1, -1)
    mixed = F.scaled_dot_product_attention(q.to(v.dtype).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return attn.to_out[0](mixed.transpose(1, 2).flatten(2))


def feed_forward(ffn: Any, x: Tensor, *, up: Delta, down: Delta) -> Tensor:
    """A frozen `FeedForward` (GELU) over x (B, S, C) with something added to both of its projections."""
    inner = ffn.net[0].gelu(ffn.net[0].proj(x) + up(x))
    return ffn.net[2](inner) + down(inner)
