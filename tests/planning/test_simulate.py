"""The plan's arithmetic is that of real steps: bytes kept for the backward pass, operations, parameters."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ivedit.config.schema import Config
from ivedit.editor import build_editor, parameter_count
from ivedit.planning.backbones import BackboneConfigs, text_encoder_parameters
from ivedit.planning.simulate import UPDATE, Model, Trace, extrapolated
from ivedit.training.flops import count_flops
from ivedit.training.module import EditModule
from tests.backbone.tiny import SCHEDULER, tiny_backbone, tiny_text

VARIANTS: dict[str, dict[str, Any]] = {
    "text gate": {},
    "plain": {"variant": "single_attention", "gate": "none"},
    "side by side": {"variant": "side_by_side", "rank": 4},
}


def settings(editor: dict[str, Any], *, draws: int = 1, checkpointing: bool = False) -> Config:
    cfg = Config()
    cfg.data.height = cfg.data.width = 64
    cfg.train.batch_size, cfg.train.precision, cfg.train.compile = 2, "32-true", "off"
    cfg.flow.draws_per_pair, cfg.backbone.gradient_checkpointing = draws, checkpointing
    for name, value in editor.items():
        setattr(cfg.editor, name, value)
    return cfg


def configs_of(backbone: Any) -> BackboneConfigs:
    return BackboneConfigs(
        "tiny", dict(backbone.transformer.config), dict(backbone.vae.config), SCHEDULER, None, backbone.spec.text_length
    )


def kept_for_backward(run: Callable[[], torch.Tensor]) -> float:
    """Bytes that a real forward pass leaves allocated while its loss is alive, as the allocator counts them."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss = run()
        gc.collect()  # what hangs in cycles is not kept, whenever the collector would have come
    assert loss.requires_grad
    return float(sum(event.self_cpu_memory_usage for event in profile.events()))


def planned(cfg: Config, configs: BackboneConfigs, blocks: int) -> Trace:
    return Model(cfg, configs, blocks=blocks, gpu=False).training_step(
        batch=2, draws=cfg.flow.draws_per_pair, checkpointing=cfg.backbone.gradient_checkpointing
    )


@pytest.mark.parametrize("checkpointing", [False, True], ids=["all kept", "checkpointed"])
@pytest.mark.parametrize("name", VARIANTS)
def test_bytes_kept_for_the_backward_pass_are_those_of_a_real_step(name: str, checkpointing: bool):
    draws = 4 if name == "text gate" else 1
    cfg = settings(VARIANTS[name], draws=draws, checkpointing=checkpointing)
    backbone = tiny_backbone(blocks=2)
    backbone.gradient_checkpointing = checkpointing
    configs = configs_of(backbone)
    module = EditModule(backbone, build_editor(cfg.editor, backbone), cfg, max_steps=10)
    model = Model(cfg, configs, blocks=2, gpu=False)
    with model.fake:
        shapes = {key: (t.shape, t.dtype) for key, t in model.tensors(2, draws).items()}
    tensors = {key: torch.ones(shape, dtype=dtype) for key, (shape, dtype) in shapes.items()}
    contexts: list[Any] = []
    prepare = module.editor.prepare
    module.editor.prepare = lambda *a, **k: contexts.append(prepare(*a, **k)) or contexts[-1]  # type: ignore

    def run() -> torch.Tensor:
        return module.training_losses(tensors).mean()

    run()  # tables of positions are made once
    contexts.clear()
    real = kept_for_backward(run)
    real -= sum(t.untyped_storage().nbytes() for c in contexts for t in c.features)
    model.training_step(batch=2, draws=draws, checkpointing=checkpointing)
    found = model.training_step(batch=2, draws=draws, checkpointing=checkpointing).saved
    assert found == pytest.approx(real, rel=0.05)


def test_operations_are_those_of_the_real_code_and_more_blocks_follow_from_few():
    cfg, backbone = settings({"width": 24}), tiny_backbone(blocks=4)
    configs = configs_of(backbone)
    with sdpa_kernel(SDPBackend.MATH):  # as the counter of real steps runs it
        two, three, four = (planned(cfg, configs, blocks) for blocks in (2, 3, 4))
    follows = extrapolated(two, three, (2, 3, 4))
    assert sum(four.flops.values()) == count_flops(cfg, backbone)["training_step"]
    assert (follows.flops, follows.saved) == (four.flops, four.saved)
    assert [m.phase for m in follows.moments] == [m.phase for m in four.moments]
    for one, other in zip(follows.moments, four.moments, strict=True):
        assert one.total == pytest.approx(other.total, rel=0.02), one.phase
    assert follows.flops["frozen"] > 0 and follows.flops["modules"] > 0


def test_the_fullest_moment_holds_weights_state_and_what_is_kept():
    cfg, backbone = settings({"width": 24}), tiny_backbone(blocks=2)
    model = Model(cfg, configs_of(backbone), blocks=2, gpu=False)
    model.training_step(batch=2, draws=1, checkpointing=False)  # tables of positions are made once
    trace = model.training_step(batch=2, draws=1, checkpointing=False)
    editor = build_editor(cfg.editor, backbone)
    assert trace.peak.parts["trained"] == 4 * parameter_count(editor)
    assert trace.peak.parts["ema"] == trace.peak.parts["trained"]
    assert trace.peak.parts["optimiser"] == pytest.approx(2 * trace.peak.parts["trained"], rel=0.02)
    tables = sum(b.numel() * b.element_size() for b in backbone.transformer.buffers())
    frozen = sum(p.numel() * p.element_size() for p in backbone.transformer.parameters())
    assert trace.peak.parts["frozen"] == pytest.approx(frozen + tables, rel=0.01)
    assert trace.peak.total >= sum(model.held().values()) + trace.saved
    update = next(moment for moment in trace.moments if moment.phase == UPDATE)
    assert update.parts["gradients"] == pytest.approx(update.parts["trained"], rel=0.35)  # each rounded up to 512 bytes
    assert update.parts["activations"] == 0


def test_the_text_encoders_weights_are_counted_in_closed_form():
    encoder, _ = tiny_text()
    assert text_encoder_parameters(encoder.config.to_dict()) == sum(p.numel() for p in encoder.parameters())
