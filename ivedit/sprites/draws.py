"""Counter-based random draws: every draw is a pure function of (seed, index, label).

Generators with a state depend on what was drawn before, so a sample would change with its batch, its worker
or its device. Here a 64-bit key stands for a sample, and a draw hashes the key with a label. The hash is the
finaliser of splitmix64 (Steele, Lea and Flood, 2014) in wrapping 64-bit integer arithmetic, which is bit-
exact on CPUs and GPUs.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The signed 64-bit integer with the bits of `value` modulo 2**64 (torch's unsigned operations are few)."""
    value &= _WORD
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's `>>` copies the sign bit, so the copies are masked away."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _finalise(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)


def _finalise_int(x: int) -> int:
    x &= _WORD
    x = ((x ^ (x >> 30)) * _FIRST) & _WORD
    x = ((x ^ (x >> 27)) * _SECOND) & _WORD
    return x ^ (x >> 31)


def _label(label: str) -> int:
    """A 64-bit constant for a label: unlike numbers, names do not shift when a draw is added between others."""
    return _signed(_finalise_int(zlib.crc32(label.encode()) + _GOLDEN))


def fork(key: Tensor, counter: Tensor | int) -> Tensor:
    """Independent keys derived from `key` (any shape, int64) and `counter` (broadcast against it)."""
    if isinstance(counter, int):
        return _finalise(key + _signed((counter + 1) * _GOLDEN))
    return _finalise(key + (counter + 1) * _signed(_GOLDEN))


def stream(seed: int, index: Tensor, label: str) -> Tensor:
    """Keys (same shape as `index`, int64) of the samples `index` of the stream named `label` under `seed`."""
    start = _signed(_finalise_int(_finalise_int(seed + _GOLDEN) ^ _label(label)))
    return fork(_finalise(index.long() ^ start), 0)


def bits(key: Tensor, label: str) -> Tensor:
    """24 random bits per key, as int64 in [0, 2**24)."""
    return _shift(_finalise(key ^ _label(label)), 40)


def uniform(key: Tensor, label: str) -> Tensor:
    """float32 in [0, 1), a multiple of 2**-24 and therefore exact."""
    return bits(key, label).to(torch.float32) * 2.0**-24


def integers(key: Tensor, label: str, count: int | Tensor) -> Tensor:
    """int64 in [0, count); `count` up to 2**24, a number or a tensor that broadcasts against `key`."""
    return _shift(bits(key, label) * count, 24)


def chance(key: Tensor, label: str, probability: float) -> Tensor:
    """bool, true with `probability`."""
    return bits(key, label) < int(probability * 2**24)
