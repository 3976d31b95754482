"""A backbone spread by FSDP2, with one rank: several are in tests/training/test_ranks.py."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.module import register_module_forward_pre_hook

from ivedit.backbone.sharded import shard_backbone
from ivedit.data.text import TextStates
from tests.backbone.tiny import tiny_backbone


def test_fsdp_calls_nothing_without_an_argument_which_torch_before_2_13_refuses_on_a_gpu(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    called: list[tuple[str, int]] = []

    def note(module: torch.nn.Module, args: tuple) -> None:
        if isinstance(module, FSDPModule):
            called.append((type(module).__name__, len(args)))

    handle = register_module_forward_pre_hook(note)
    try:
        backbone = tiny_backbone(blocks=2)
        latents, sigma = torch.randn(1, 4, 1, 4, 4), torch.tensor([0.5])
        text = TextStates(torch.randn(1, 12, 16), torch.ones(1, 12, dtype=torch.bool))
        with torch.no_grad():
            expected = backbone.velocity(latents, sigma, text)
            shard_backbone(
                backbone, init_device_mesh("cpu", (1,)), device=torch.device("cpu"), dtype=torch.float32
            )
            found = backbone.velocity(latents, sigma, text)
    finally:
        handle.remove()
        torch.distributed.destroy_process_group()
    assert torch.equal(found, expected)
    assert len(called) == 3 and all(count > 0 for _, count in called), called  # the root and two blocks
