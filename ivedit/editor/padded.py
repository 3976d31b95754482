"""Attention to keys of which each sample has its own number, the rest being padding (texts of different lengths).

A bias of -inf at the padding says it to any attention kernel, but takes the fast ones away. On a GPU the samples are
handed to the variable-length kernel instead: each sample is two sequences of it, its queries with its real keys, and
no query at all with its padding. Shapes stay the same whatever the lengths, so that a step can be compiled and
captured, and nothing is gathered or waited for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["KeyMask", "attend", "key_mask", "sequence_starts", "with_bias"]


@dataclass(frozen=True)
class KeyMask:
    """Which keys are real: the first ones of each sample.

    Attributes:
        bias: (B, 1, 1, K), 0 at real keys and -inf at padding.
        starts: (2 B + 1,) int32, where the sequences of keys start: real keys, padding, real keys, ...; None: the
            bias is used.
        queries: (2 B + 1,) int32, where those of queries start.
    """

    bias: Tensor
    starts: Tensor | None = None
    queries: Tensor | None = None


_sequences = True


@contextmanager
def with_bias() -> Iterator[None]:
    """Inside the block masks are biases on a GPU too (for counting operations, and to compare the two)."""
    global _sequences
    before, _sequences = _sequences, False
    try:
        yield
    finally:
        _sequences = before


def key_mask(real: Tensor, dtype: torch.dtype, *, before: int = 0, queries: int, copies: int = 1) -> KeyMask:
    """The mask of B samples.

    Args:
        real: (B, L) bool, True at the first keys of each sample and False behind them.
        dtype: of the bias.
        before: real keys of every sample in front of these L, so that K = before + L.
        queries: number of queries of a sample.
        copies: each sample stands for this many consecutive ones.
    """
    bias = torch.zeros_like(real, dtype=dtype).masked_fill_(~real, float("-inf"))
    bias = F.pad(bias, (before, 0))
    lengths = real.sum(dim=1, dtype=torch.int32)
    if copies > 1:
        bias, lengths = bias.repeat_interleave(copies, dim=0), lengths.repeat_interleave(copies)
    if not (_sequences and _has_sequences(real.device) and dtype in (torch.bfloat16, torch.float16)):
        return KeyMask(bias[:, None, None])
    return KeyMask(bias[:, None, None], *sequence_starts(before + lengths, bias.shape[1], queries))


def _has_sequences(device: torch.device) -> bool:
    """Whether the variable-length kernel runs there: GPUs from Ampere on, unless flash attention was switched off."""
    if device.type != "cuda" or not torch.backends.cuda.flash_sdp_enabled():
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def sequence_starts(lengths: Tensor, keys: int, queries: int) -> tuple[Tensor, Tensor]:
    """Where the sequences of keys and of queries start, (2 B + 1,) int32 each, for (B,) `lengths` of `keys` keys."""
    first = torch.arange(len(lengths), device=lengths.device, dtype=torch.int32)
    ends = torch.stack((first * keys + lengths, (first + 1) * keys), dim=1).flatten()
    query_ends = ((first + 1) * queries).repeat_interleave(2)
    return F.pad(ends, (1, 0)), F.pad(query_ends, (1, 0))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: KeyMask | None) -> Tensor:
    """Softmax attention, (B, heads, Q, head size) to (B, heads, K, head size); None: all keys are real."""
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value)
    # The variable-length kernel is of half precision, and of heads of a multiple of 8 up to 256.
    fits = query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    if mask.starts is None or mask.queries is None or not fits:
        return F.scaled_dot_product_attention(query, key, value, mask.bias)
    from torch.nn.attention.varlen import varlen_attn

    def in_a_row(tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).flatten(0, 1)

    mixed = varlen_attn(
        in_a_row(query), in_a_row(key), in_a_row(value), mask.queries, mask.starts, query.shape[2], key.shape[2]
    )
    assert isinstance(mixed, Tensor)
    return mixed.unflatten(0, (len(query), -1)).transpose(1, 2)
