"""How the ranks of a run work together: each with all trained weights (DDP), or sharing one copy (FSDP2).

The frozen backbone is no submodule of what is trained, so DDP neither broadcasts nor buckets it; its gradients do not
exist. Which of the two: ``train.strategy``.

Where the step is captured, DDP wraps nothing: a CUDA graph has no place for its hooks. The gradients that the graph has
made are averaged right after it (`average_gradients`); inside a machine that costs less than eager launches do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from ivedit.backbone import Backbone
from ivedit.backbone.loading import storage_dtype
from ivedit.backbone.sharded import shard_backbone
from ivedit.editor import Editor
from ivedit.errors import IveditError
from ivedit.ranks import MEETING_TIMEOUT, Ranks, address, find_ranks
from ivedit.training.shares import Shares

__all__ = [
    "SharedStrategy", "WholeStrategy", "average_gradients", "build_environment", "build_strategy", "edit_parts",
    "gradient_sync", "local_device", "share_editing",
]  # fmt: skip

_AT_ONCE = 2**26
"""Numbers summed over the ranks at a time: 256 MiB in float32, enough for NVLink's full pace."""


class StartedRanks(ClusterEnvironment):
    """Tells the Trainer what `ivedit.ranks` knows, so that it detects nothing, starts nothing and requeues nothing."""

    def __init__(self, ranks: Ranks, devices: int) -> None:
        super().__init__()
        self._ranks, self._devices = ranks, devices

    @property
    def creates_processes_externally(self) -> bool:
        """They are there."""
        return True

    @property
    def main_address(self) -> str:
        """Where they have met."""
        return address(os.environ)[0]

    @property
    def main_port(self) -> int:
        """The port there."""
        return address(os.environ)[1]

    @staticmethod
    def detect() -> bool:
        """Never by itself."""
        return False

    def world_size(self) -> int:
        """All ranks."""
        return self._ranks.world

    def set_world_size(self, size: int) -> None:
        """It is what it is."""

    def global_rank(self) -> int:
        """Of this process."""
        return self._ranks.rank

    def set_global_rank(self, rank: int) -> None:
        """It is what it is."""

    def local_rank(self) -> int:
        """Of this process on its machine."""
        return self._ranks.local

    def node_rank(self) -> int:
        """Of this machine; ranks are numbered machine by machine."""
        return self._ranks.rank // self._devices


class WholeStrategy(DDPStrategy):
    """Ranks with all trained weights each: wrapped by DDP, or not, for a module that sums its own gradients."""

    def configure_ddp(self) -> None:
        """Wrap the module, or give all ranks the weights of rank 0 as wrapping does."""
        module: Any = self.lightning_module
        if not getattr(module, "sums_gradients", False):
            super().configure_ddp()
            return
        for weight in module.trained_parameters():
            torch.distributed.broadcast(weight.detach(), src=0)


class SharedStrategy(DDPStrategy):
    """Ranks that share one copy of the trained weights, cut by FSDP2 (`ivedit.backbone.sharded`) before `fit`.

    FSDP sums the gradients itself, so the module is not wrapped. Checkpoints hold whole tensors: saving one is a
    meeting of all ranks, at which rank 0 alone gets them.
    """

    def configure_ddp(self) -> None:
        """Nothing to wrap."""

    @property
    def _shares(self) -> Shares:
        return self.lightning_module.shares  # type: ignore[union-attr,return-value]

    def _names(self) -> list[str]:
        from ivedit.training.callbacks import trained_names

        return list(trained_names(self.lightning_module))  # type: ignore[arg-type]

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The trained weights, whole; empty on ranks other than 0."""
        return self._shares.whole_weights(self._names()) or {}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's part of each weight."""
        with torch.no_grad():
            for own, name in zip(self._shares.kept, self._names(), strict=True):
                own.copy_(self._shares.cut(checkpoint["state_dict"][name]))

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """As `Shares.whole_state`."""
        return self._shares.whole_state(getattr(optimizer, "_optimizer", optimizer))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's part of each state."""
        states = [
            self._shares.cut_state(optimizer, state)
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        ]
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})


def build_strategy(train: Any) -> Strategy | str:
    """The Trainer's strategy for ``train`` (the configuration's section).

    DDP with gradients that are views of the buckets. All trained parameters take part in every step, so nothing looks
    for unused ones. Its static graph is left off: it forbids leaving out the synchronisation of inner micro-batches.
    """
    if train.strategy == "fsdp":
        return SharedStrategy(timeout=MEETING_TIMEOUT)
    if train.devices * train.nodes == 1:
        return "auto"
    return WholeStrategy(timeout=MEETING_TIMEOUT, gradient_as_bucket_view=True, find_unused_parameters=False)


def build_environment(train: Any) -> ClusterEnvironment | None:
    """Where the Trainer gets its ranks from; None: it starts them itself (several, asked for by a script)."""
    ranks = find_ranks()
    if ranks.started_by:
        return StartedRanks(ranks, train.devices)
    # One process is one, also in a SLURM job that could have more.
    return LightningEnvironment() if train.devices * train.nodes == 1 else None


def gradient_sync(trainer: L.Trainer, last: bool) -> AbstractContextManager[Any]:
    """Around a backward pass: only that of a step's last micro-batch sums DDP's gradients over the ranks.

    FSDP sums at every one: keeping whole gradients until the last would take the memory that it is there to save.
    """
    model = trainer.strategy.model
    if last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


def average_gradients(gradients: Sequence[Tensor]) -> None:
    """Make each the mean over all ranks, in place; every rank has the same shapes in the same order.

    Many small ones are summed as one, in pieces that keep the extra memory small.
    """
    world, piece, held = torch.distributed.get_world_size(), [], 0
    for number, gradient in enumerate(gradients, 1):
        piece.append(gradient)
        held += gradient.numel()
        if held >= _AT_ONCE or number == len(gradients):
            flat = torch.cat([g.reshape(-1) for g in piece]).div_(world)
            torch.distributed.all_reduce(flat)
            parts = flat.split([g.numel() for g in piece])
            torch._foreach_copy_(piece, [part.view_as(g) for part, g in zip(parts, piece, strict=True)])
            piece, held = [], 0


def edit_parts(editor: Editor) -> dict[int, list[nn.Module]]:
    """Block index -> the modules of the editor that run inside that block.

    Raises:
        IveditError: the editor has weights that belong to no single block.
    """
    lists = [child for child in editor.children() if isinstance(child, nn.ModuleList)]
    parts = {block: [each[slot] for each in lists] for slot, block in enumerate(editor.blocks)}
    inside = {id(p) for modules in parts.values() for module in modules for p in module.parameters()}
    outside = [name for name, p in editor.named_parameters() if id(p) not in inside]
    if outside:
        raise IveditError(
            f"train.strategy=fsdp: {outside[0]} of {editor.name} runs in no single block; use train.strategy=ddp"
        )
    return parts


def local_device(train: Any) -> torch.device:
    """The device of this rank, as the Trainer will choose it."""
    if train.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", find_ranks().local)


def share_editing(backbone: Backbone, editor: Editor, cfg: Any, device: torch.device) -> None:
    """Spread backbone and editor over the ranks of each machine, for ``train.strategy=fsdp``.

    Across machines the parts are copies: gathering stays inside a machine, gradients are averaged over all.

    Raises:
        IveditError: no ranks have been started, or the editor cannot be spread.
    """
    if not torch.distributed.is_initialized():
        raise IveditError(
            "train.strategy=fsdp spreads the weights before training starts, so the ranks must have met by then: "
            "start the run with python -m ivedit.run, torchrun or srun"
        )
    train = cfg.train
    parts = edit_parts(editor)
    backbone.fingerprint()  # of the whole weights, which exports name; rank 0 alone could not ask for it later
    if train.nodes > 1:
        both = init_device_mesh(device.type, (train.nodes, train.devices), mesh_dim_names=("machine", "device"))
        inside = both["device"]
    else:
        both = inside = init_device_mesh(device.type, (train.devices,))
    dtype = storage_dtype(cfg.backbone.dtype, device)
    shard_backbone(backbone, inside, device=device, dtype=dtype, trained=parts, trained_mesh=both)
