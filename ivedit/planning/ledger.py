"""What a piece of code would allocate, compute and move, seen op by op without doing any of it.

Tensors are fake (`FakeTensorMode`: shapes, types and storages without memory), so the package's own code runs at true
size in seconds on any machine. `Ledger` sees every operation that reaches the dispatcher and keeps three things: when
each storage was born and died, the floating-point operations, and the bytes read and written. `gpu_kernels` sends
attention and RMS norm to the kernels that a GPU would run, since those of a CPU keep other tensors for the backward
pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["Allocation", "Ledger", "Operation", "gpu_kernels", "storage_of"]

_ROUND = 512  # torch's CUDA allocator hands out multiples of this


@dataclass
class Allocation:
    """One storage: its rounded size in bytes, the operations at which it appeared and vanished, the phase it is of."""

    size: int
    born: int
    phase: str
    died: int | None = None


@dataclass(frozen=True)
class Operation:
    """One kernel: floating-point operations (a multiply-add is two), bytes read and written, what it is for.

    ``kind`` is frozen (a product with a frozen weight), modules (any other product: with trained weights, or for their
    gradients), attention, or other (no product: norms, activations, copies, the optimiser). ``length`` is the number of
    keys that attention goes over, 0 for anything else.
    """

    flops: int
    moved: int
    kind: str
    phase: str
    length: int = 0


def storage_of(tensor: Tensor) -> int:
    """Identity of a tensor's storage while it is alive."""
    return tensor.untyped_storage()._cdata


class Ledger(TorchDispatchMode):
    """Records allocations and operations while it is active; put it inside a `FakeTensorMode`.

    Attributes:
        allocations: every storage seen, in the order of birth.
        operations: every kernel, in order.
        at: number of operations seen, the time axis of `allocations`.
        phase: name under which both are filed, see `during`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.allocations: list[Allocation] = []
        self.operations: list[Operation] = []
        self.at = 0
        self.phase = "set-up"
        self.bounds: dict[str, tuple[int, int]] = {}
        self._alive: dict[int, tuple[Any, Allocation | None]] = {}
        self._frozen: set[int] = set()

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """File what happens inside under ``phase``."""
        before, self.phase, start = self.phase, phase, self.at
        try:
            yield
        finally:
            self.phase = before
            self.bounds[phase] = (start, self.at)

    def split(self, phase: str, parts: dict[str, tuple[int | None, int | None]]) -> None:
        """Replace a phase by parts of it, which may leave out something; None stands for its own begin or end."""
        start, stop = self.bounds.pop(phase)
        for name, (first, last) in parts.items():
            self.bounds[name] = (start if first is None else first, stop if last is None else last)

    def mark_frozen(self, weights: Iterable[Tensor]) -> None:
        """Products with these weights (or with casts of them) count as the frozen backbone's."""
        self._frozen |= {storage_of(weight) for weight in weights}

    def allocation(self, tensor: Tensor) -> Allocation | None:
        """The record of a tensor's storage; None for one that was made before this ledger."""
        return self._alive.get(storage_of(tensor), (None, None))[1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
        for tensor in given:
            if storage_of(tensor) not in self._alive:
                self._known_before(tensor)
        out = func(*args, **(kwargs or {}))
        self.at += 1
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        new = [t for t in results if storage_of(t) not in self._alive]
        for tensor in new:
            self._born(tensor)
        if func.is_view or not (new or func._schema.is_mutable):
            return out
        if func is torch.ops.aten._to_copy.default and storage_of(given[0]) in self._frozen:
            self._frozen.add(storage_of(results[0]))
        formula = flop_registry.get(func.overloadpacket)
        flops, kind = 0, "other"
        if formula is not None:
            flops = int(formula(*args, **(kwargs or {}), out_val=out))
            kind = self._kind(func, given)
        moved = sum(_bytes(t) for t in (*given, *results))
        length = max(t.shape[-2] for t in given if t.ndim == 4) if kind == "attention" else 0
        self.operations.append(Operation(flops, moved, kind, self.phase, length))
        return out

    def _kind(self, func: Any, given: list[Tensor]) -> str:
        if "scaled_dot_product" in str(func) or "attention" in str(func):
            return "attention"
        return "frozen" if any(storage_of(t) in self._frozen for t in given) else "modules"

    def _known_before(self, tensor: Tensor) -> None:
        """An input that no operation here has made is no allocation."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._alive[key] = (weakref.ref(storage, lambda _: self._alive.pop(key, None)), None)

    def _born(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        allocation = Allocation(-(-size // _ROUND) * _ROUND, self.at, self.phase)
        self.allocations.append(allocation)

        def gone(_: Any) -> None:
            allocation.died = self.at
            self._alive.pop(key, None)
            self._frozen.discard(key)

        self._alive[key] = (weakref.ref(storage, gone), allocation)


def _bytes(tensor: Tensor) -> int:
    """What reading or writing it moves; an expanded tensor is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@contextmanager
def gpu_kernels(*, norms: bool = True) -> Iterator[None]:
    """Attention and RMS norm run as a GPU's fused kernels: flash attention without a mask, memory-efficient with one.

    With ``norms`` off RMS norm is spelled out, as the compiler sees it. The functions themselves are exchanged: a
    `TorchFunctionMode` is off during a backward pass, where gradient checkpointing runs the forward pass again.
    """
    before = F.scaled_dot_product_attention, F.rms_norm
    F.scaled_dot_product_attention = _attention  # type: ignore[assignment]
    F.rms_norm = _rms_norm if norms else _SPELLED_OUT  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.rms_norm = before  # type: ignore[assignment]


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (t.to(torch.get_autocast_dtype("cpu")) for t in (query, key, value))
    if query.dtype == torch.float32 or attn_mask is not None:  # flash attention takes neither
        bias = None
        if attn_mask is not None:
            bias = attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True)[0]
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]


_SPELLED_OUT = F.rms_norm


def _rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    return _FusedRmsNorm.apply(x, weight)


class _FusedRmsNorm(torch.autograd.Function):
    """What the fused kernels of RMS norm read, write and keep; torch spells the norm out for anything but a GPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight, _ = ctx.saved_tensors
        wanted = weight is not None and ctx.needs_input_grad[1]
        return gradients[0] + torch.empty_like(x), torch.empty_like(weight) if wanted else None
