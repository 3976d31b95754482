"""torch.compile on the repeated unit: one compiled block serves all blocks of a stream.

A function that takes a block and its edit module as arguments is compiled once for all of them: their weights become
inputs of the compiled code, which is guarded by shapes and not by which block it is. What is compiled again: another
shape, no gradient in place of one, the first block of a training step (whose input needs no gradient).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import torch
import torch._dynamo  # its settings and callbacks are used

__all__ = ["LARGE", "CompileClock", "compile_failed", "compiled", "is_large", "sampling_compiles"]

F = TypeVar("F", bound=Callable[..., Any])

# Kinds of pass times shapes (buckets, clip lengths); beyond it torch falls back to eager code with a warning.
_VARIANTS = 64
LARGE = 500_000_000
"""Weights of a transformer from which on compiling pays at once."""


@cache
def compiled(unit: F, backend: str = "inductor") -> F:
    """`unit` through torch.compile, for static shapes; one compiled object per function for the whole process.

    The code that was compiled is kept on disk by torch (TORCHINDUCTOR_CACHE_DIR), so that runs and the children of a
    sweep share it.
    """
    # Inside DDP, dynamo would cut each graph where a bucket of gradients is full. A block's own end is as good a place.
    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
    return cast(F, torch.compile(unit, backend=backend, dynamic=False))


def is_large(backbone: Any) -> bool:
    """Whether a `Backbone` is of a size where compiling pays at once; the tiny shipped one is not."""
    return sum(weight.numel() for weight in backbone.transformer.parameters()) >= LARGE


def sampling_compiles(setting: str, backbone: Any) -> bool:
    """What ``sampling.compile`` means for a `Backbone`; auto: a large one on a GPU."""
    return setting == "on" or (setting == "auto" and backbone.device.type == "cuda" and is_large(backbone))


def compile_failed(error: BaseException) -> bool:
    """Whether an error comes from compiling itself, and not from what the code does (memory, shapes)."""
    return isinstance(error, torch._dynamo.exc.TorchDynamoException)


class CompileClock:
    """How long compiling took, by itself; used as a context manager.

    Attributes:
        seconds: spent in compiling since the block was entered.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def _start(self, args: Any) -> None:
        self._started = time.perf_counter()

    def _end(self, args: Any) -> None:
        self.seconds += time.perf_counter() - self._started

    def __enter__(self) -> CompileClock:
        from torch._dynamo.callback import callback_handler

        callback_handler.register_start_callback(self._start)
        callback_handler.register_end_callback(self._end)
        return self

    def __exit__(self, *error: object) -> None:
        from torch._dynamo.callback import callback_handler

        callback_handler.remove_start_callback(self._start)
        callback_handler.remove_end_callback(self._end)
