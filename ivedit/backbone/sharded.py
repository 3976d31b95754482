"""A frozen backbone spread over the GPUs of a machine, for cards that one copy of it does not fit on.

Every rank keeps its part of each block's matrices (PyTorch's FSDP2, `torch.distributed.fsdp.fully_shard`). A block is
put together just before it runs, on all ranks at once, while the one after it is already on its way, and taken apart
behind it; the same again in the backward pass. The modules trained in a block can be spread with it: their gradients
are then summed over the ranks and handed out in parts (ZeRO-3).

FSDP hangs on the `forward` of modules, but our blocks are run by functions and edit modules by several of their
methods, from inside a block's. So what is gathered together sits in a `Gathered` of its own, whose `forward` is the
call to make while the weights are there; FSDP's hooks stay outside compiled code and outside recomputed blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from ivedit.errors import IveditError

__all__ = ["Sharding", "shard_backbone"]

Call = Callable[[torch.Tensor], Any]


class Gathered(nn.Module):
    """Modules whose weights are whole while a call runs."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, call: Call, stream: torch.Tensor) -> Any:
        """``call(stream)``; FSDP looks at ``stream`` to know when the backward pass is through."""
        return call(stream)


class _Root(nn.Module):
    """Holds everything that shares communication streams; running it once tells FSDP so."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, some: torch.Tensor) -> None:
        """Nothing to compute; before torch 2.13, FSDP fails on a GPU where a module is called without arguments."""


class Sharding:
    """What is spread, and how to run a block of it; made by `shard_backbone`.

    Attributes:
        mesh: the ranks that hold the parts, one dimension.
    """

    def __init__(
        self, frozen: Sequence[Gathered], trained: Mapping[int, Gathered], mesh: DeviceMesh
    ) -> None:
        self.mesh = mesh
        self._frozen = list(frozen)
        self._trained = dict(trained)
        self._root = _Root([*self._frozen, *self._trained.values()])
        fully_shard(self._root, mesh=mesh)
        for chain in (self._frozen, [self._trained[index] for index in sorted(self._trained)]):
            _prefetch(chain)
        self._root(torch.empty(0))

    def source(self, index: int, call: Call, stream: torch.Tensor) -> Any:
        """``call(stream)`` with block ``index`` put together; its edit modules stay apart."""
        return self._frozen[index](call, stream)

    def target(self, index: int, call: Call, stream: torch.Tensor) -> Any:
        """``call(stream)`` with block ``index`` and the modules trained in it put together."""
        trained = self._trained.get(index)
        if trained is None:
            return self._frozen[index](call, stream)
        return trained(lambda inner: self._frozen[index](call, inner), stream)


def _prefetch(chain: Sequence[Any]) -> None:
    """The next one is gathered while one runs; without being told, FSDP would go back into the source's pass."""
    for place, unit in enumerate(chain):
        if place + 1 < len(chain):
            unit.set_modules_to_forward_prefetch([chain[place + 1]])
        # The first one names itself, which is there already: an empty list would mean FSDP's own guess.
        unit.set_modules_to_backward_prefetch([chain[max(place - 1, 0)]])


def shard_backbone(
    backbone: Any,
    mesh: DeviceMesh,
    *,
    device: torch.device,
    dtype: torch.dtype,
    trained: Mapping[int, Sequence[nn.Module]] | None = None,
    trained_mesh: DeviceMesh | None = None,
) -> Sharding:
    """Spread a backbone's blocks, and the modules trained in them, over the ranks of a mesh, in place.

    Blocks go to the device one by one, so that the whole transformer is never there; one that was mapped from a file
    on the host stays that one mapping for all ranks of a machine. Norms, biases and tables are small and stay whole.

    Args:
        backbone: a `Backbone` whose transformer is loaded, on the host or on the device.
        mesh: one dimension; the same weights on all ranks.
        device: where parts are kept and blocks run.
        dtype: storage type of the frozen weights; what Wan keeps in float32 stays so.
        trained: block index -> modules that run inside that block and are trained.
        trained_mesh: of those; two dimensions are machines with the same parts and the ranks that hold the parts.
            None: ``mesh``.

    Raises:
        IveditError: it is spread already.
    """
    if backbone.sharding is not None:
        raise IveditError("this backbone is spread over the ranks already")
    transformer = backbone.transformer
    keep = tuple(getattr(transformer, "_keep_in_fp32_modules", None) or ())
    frozen = []
    for index, block in enumerate(backbone.blocks):
        _move(block, f"blocks.{index}.", keep, device, dtype)
        whole = {weight for weight in block.parameters() if weight.ndim < 2 or weight.dtype != dtype}
        if dtype == torch.float32:  # nothing tells the table by its type
            whole |= {weight for name, weight in block.named_parameters() if "scale_shift_table" in name}
        unit = Gathered(block)
        fully_shard(unit, mesh=mesh, ignored_params=whole)
        frozen.append(unit)
    _move(transformer, "", keep, device, dtype)
    backbone.to(device)
    units = {}
    for index, modules in (trained or {}).items():
        unit = Gathered(*modules).to(device)
        fully_shard(unit, mesh=trained_mesh or mesh)
        units[index] = unit
    backbone.sharding = Sharding(frozen, units, mesh)
    return backbone.sharding


def _move(module: nn.Module, prefix: str, keep: tuple[str, ...], device: torch.device, dtype: torch.dtype) -> None:
    """A module's weights and tables to the device, those that are not spread yet, each in its storage type."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if isinstance(tensor, torch.distributed.tensor.DTensor) or not tensor.is_floating_point():
            continue
        kept = any(part in prefix + name for part in keep)
        tensor.data = tensor.data.to(device, torch.float32 if kept else dtype)
