"""What a rank keeps of the trained parameters: all of each, or, where the ranks share one copy, its part of each.

Optimiser, averaging and clipping work on plain tensors either way: a part shares its memory with the parameter that
FSDP keeps (a DTensor, cut along the first dimension), so that an update in place is the parameter's. Only what leaves
the process is put together: checkpoints and exports hold whole tensors and do not tell how they were trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = ["Shares"]

# The same under the name that torch 2.13 prefers and the one that 2.11 has.
_all_gather: Any = getattr(torch.distributed, "all_gather_single", None) or torch.distributed.all_gather_into_tensor


class Shares:
    """Of parameters that are all spread over the same ranks, or not at all.

    Args:
        parameters: The module's own, in the order that everything else keeps.

    Attributes:
        parameters: As given.
        kept: What this rank keeps of each, plain parameters; `parameters` themselves where nothing is spread.
        spread: Whether they are spread.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.spread = any(isinstance(p, DTensor) for p in self.parameters)
        if not self.spread:
            self.kept = self.parameters
            return
        if not all(isinstance(p, DTensor) for p in self.parameters):
            raise ValueError("some trained parameters are spread over the ranks and some are not")
        self.kept = [nn.Parameter(p.detach().to_local()) for p in self.parameters]  # type: ignore[attr-defined]
        self._place = {id(kept): place for place, kept in enumerate(self.kept)}
        mesh = self.parameters[0].device_mesh  # type: ignore[attr-defined]
        # The last dimension is the one that cuts; one before it, if any, are machines with the same parts.
        self._group = mesh.get_group(mesh.ndim - 1)
        self._rank, self._world = mesh.get_local_rank(mesh.ndim - 1), mesh.size(mesh.ndim - 1)

    # ---- gradients

    def clear_gradients(self) -> None:
        """No parameter has a gradient any more."""
        for p in (*self.parameters, *self.kept):
            p.grad = None

    def gradients(self) -> list[Tensor]:
        """This rank's gradients of the parameters that have one; ``kept`` have them too afterwards."""
        if self.spread:
            for own, p in zip(self.kept, self.parameters, strict=True):
                own.grad = None if p.grad is None else p.grad.to_local()  # type: ignore[attr-defined]
        return [p.grad for p in self.kept if p.grad is not None]

    def total_norm(self, norm: Tensor) -> Tensor:
        """The norm of the whole from that of this rank's parts, (); the same on all ranks."""
        if not self.spread:
            return norm
        square = norm.square()
        torch.distributed.all_reduce(square, group=self._group)
        return square.sqrt()

    # ---- whole tensors

    def shape(self, kept: Tensor) -> torch.Size:
        """Of the whole parameter that ``kept`` is this rank's part of."""
        return self.parameters[self._place[id(kept)]].shape if self.spread else kept.shape

    def gather(self, parts: Tensor, rows: int) -> Tensor:
        """Whole matrices (N, rows, b) from the parts (N, r, b) of all ranks; all ranks must call it."""
        if not self.spread:
            return parts
        most = -(-rows // self._world)
        padded = parts.new_zeros(len(parts), most, parts.shape[-1])
        padded[:, : parts.shape[1]] = parts
        every = padded.new_empty(self._world * len(parts), *padded.shape[1:])
        _all_gather(every, padded, group=self._group)
        return every.unflatten(0, (self._world, -1)).transpose(0, 1).flatten(1, 2)[:, :rows]

    def cut(self, whole: Tensor, dim: int = 0) -> Tensor:
        """This rank's part of a whole tensor, along ``dim``; the tensor itself where nothing is spread."""
        if not self.spread:
            return whole
        parts = torch.chunk(whole, self._world, dim)
        if self._rank < len(parts):
            return parts[self._rank]
        return whole.narrow(dim, 0, 0)

    def whole(self, place: int, part: Tensor) -> Tensor | None:
        """A tensor like parameter ``place`` put together from all ranks' parts, on the CPU of rank 0; elsewhere None.

        All ranks must call it. Where nothing is spread it is the part itself, on every rank.
        """
        if not self.spread:
            return part
        p: Any = self.parameters[place]
        together = DTensor.from_local(part, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
        full = together.full_tensor()
        return full.cpu() if torch.distributed.get_rank() == 0 else None

    def whole_weights(self, names: Sequence[str]) -> dict[str, Tensor] | None:
        """The parameters under their names, as `whole` gives them: on rank 0 alone where they are spread."""
        weights = {name: self.whole(place, self.kept[place].detach()) for place, name in enumerate(names)}
        return {k: v for k, v in weights.items() if v is not None} or None

    # ---- an optimiser's state

    def whole_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """``optimizer.state_dict()`` with whole tensors; on ranks other than 0 without them. All must call it."""
        return self._convert(optimizer, optimizer.state_dict(), self.whole)

    def cut_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """What `optimizer` can load of a state dict with whole tensors."""
        return self._convert(optimizer, state, lambda place, whole: self.cut(whole))

    def _convert(self, optimizer: torch.optim.Optimizer, state: dict[str, Any], convert: Any) -> dict[str, Any]:
        if not self.spread:
            return state
        order = [self._place[id(p)] for group in optimizer.param_groups for p in group["params"]]
        # Everything of an optimiser's that is as large as its parameter; the rest are counters.
        converted = {
            number: {
                key: convert(order[number], value) if isinstance(value, Tensor) and value.ndim else value
                for key, value in entries.items()
            }
            for number, entries in state["state"].items()
        }
        return {**state, "state": converted}
