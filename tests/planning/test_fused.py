"""What compiling leaves of a block, by the compiler's own partitioner."""

from __future__ import annotations

from ivedit.planning.simulate import Model
from tests.backbone.tiny import tiny_backbone
from tests.planning.test_simulate import VARIANTS, configs_of, settings


def test_a_compiled_block_keeps_and_moves_less_and_launches_fewer_kernels():
    model = Model(settings(VARIANTS["plain"]), configs_of(tiny_backbone(blocks=2)), blocks=2, gpu=True)
    fusion = model.fusion(batch=2, draws=1)
    assert 0.3 < fusion.saved <= 1.0
    assert 0.05 < fusion.moved < 0.6
    assert 0.1 < fusion.kernels < 0.8
