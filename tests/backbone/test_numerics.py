"""Low precision, compiling, checkpointing and kept projections change numbers only as far as docs/scale.md says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from backbone.tiny import tiny_backbone
from ivedit.backbone import Backbone, TextStates
from ivedit.backbone.blocks import run_block
from ivedit.backbone.compiled import CompileClock, compile_failed
from ivedit.editor import Editor, EditText, GateRecord, build_editor

# The tolerances of docs/scale.md, "Numbers": relative root-mean-square differences.
BLOCK, STREAM, GRADIENT, COMPILED = 0.01, 0.01, 0.02, 1e-4


def relative(found: Tensor, reference: Tensor) -> float:
    return float((found.float() - reference).square().mean().sqrt() / reference.square().mean().sqrt())


def backbones(kind: str) -> tuple[Backbone, Backbone]:
    if kind == "random":
        return tuple(
            tiny_backbone(blocks=4, heads=4, head_dim=64, patch=(1, 2, 2), dtype=dtype)
            for dtype in (torch.float32, torch.bfloat16)
        )
    return tuple(Backbone.load(kind, dtype=dtype, components=("transformer",)) for dtype in ("float32", "bfloat16"))


def clip(backbone: Backbone, batch: int = 2, frames: int = 1) -> tuple[Tensor, Tensor, Tensor, TextStates]:
    generator = torch.Generator().manual_seed(3)
    shape = (batch, backbone.spec.latent_channels, frames, 8, 8)
    latents, source = (torch.randn(shape, generator=generator) for _ in range(2))
    mask = torch.arange(12)[None] < torch.tensor([5, 9, 1, 12])[:batch, None]
    states = torch.randn(batch, 12, backbone.spec.text_dim, generator=generator) * mask[..., None]
    return latents, source, torch.linspace(0.15, 0.95, batch), TextStates(states, mask)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["random", "wan-sprites"])
def test_every_block_in_bfloat16_stays_near_float32(kind):
    exact, half = backbones(kind)
    latents, _, sigma, text = clip(exact)
    rotary = exact.rotary(exact.grid(latents))
    conditions = [b.condition(sigma, b.embed_text(text)) for b in (exact, half)]
    reference, stream = exact.embed(latents), half.embed(latents)
    for index in range(exact.spec.blocks):
        alone = run_block(half.blocks[index], reference, conditions[1], rotary)
        after = run_block(exact.blocks[index], reference, conditions[0], rotary)
        assert relative(alone - reference, after - reference) < BLOCK, f"what block {index} adds to the same stream"
        stream = run_block(half.blocks[index], stream, conditions[1], rotary)
        assert stream.dtype == torch.float32
        assert relative(stream, after) < STREAM, f"the stream behind block {index}"
        reference = after


def moved_editor(backbone: Backbone, **settings) -> Editor:
    """An editor away from its start, where zeros would hide mistakes."""
    editor = build_editor(settings, backbone)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in editor.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return editor


def training_step(backbone: Backbone, editor: Editor, *, one_source: bool = True) -> tuple[Tensor, list[Tensor]]:
    latents, source, sigma, text = clip(backbone)
    empty = TextStates(torch.zeros_like(text.states), torch.zeros_like(text.mask))
    texts = EditText(text, text, empty[:1] if one_source else empty)
    editor.zero_grad()
    velocity = editor.velocity(backbone, latents, sigma, editor.prepare(backbone, source, texts), texts)
    loss = (velocity - source).square().mean()
    loss.backward()
    return loss.detach(), [weight.grad for weight in editor.parameters() if weight.grad is not None]


def assert_same_step(found: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]], tolerance: float):
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=0)
    for gradient, reference in zip(found[1], expected[1], strict=True):
        assert relative(gradient, reference) < tolerance


@pytest.mark.parametrize("variant", ["predict_update", "side_by_side"])
def test_a_training_step_in_bfloat16_stays_near_float32(variant):
    found = []
    for backbone in backbones("random"):
        editor = moved_editor(tiny_backbone(blocks=4, heads=4, head_dim=64, patch=(1, 2, 2)), variant=variant)
        loss, gradients = training_step(backbone, editor)
        found.append((loss, torch.cat([gradient.flatten() for gradient in gradients])))
    assert relative(found[1][0], found[0][0]) < 0.005
    assert relative(found[1][1], found[0][1]) < GRADIENT


@pytest.mark.parametrize("variant", ["predict_update", "side_by_side"])
def test_one_compiled_block_serves_all_blocks_and_nothing_is_left_eager(variant):
    backbone = tiny_backbone(blocks=4)
    editor = moved_editor(backbone, variant=variant)
    expected = training_step(backbone, editor)
    torch._dynamo.reset()
    counters.clear()
    with backbone.compiling(backend="eager"), CompileClock() as clock:
        assert_same_step(training_step(backbone, editor), expected, COMPILED)
        # The first block (no gradient for its input) and the others; with a source stream its block too.
        assert counters["stats"]["unique_graphs"] == (3 if editor.uses_source_stream else 2)
        spent = clock.seconds
        training_step(backbone, editor)
    assert not counters["graph_break"]
    assert clock.seconds == spent > 0  # nothing was compiled twice


def test_gate_maps_are_kept_whether_blocks_are_compiled_or_not():
    backbone = tiny_backbone(blocks=2)
    editor = moved_editor(backbone)
    latents, source, sigma, text = clip(backbone)
    texts = EditText(text, text, text)
    maps = []
    for on in (False, True):
        record = GateRecord()
        with torch.no_grad(), backbone.compiling(on, backend="eager"):
            editor.velocity(backbone, latents, sigma, editor.prepare(backbone, source, texts), texts, record=record)
        maps.append(record.stacked())
    assert torch.equal(*maps)


@pytest.mark.parametrize("variant", ["predict_update", "side_by_side"])
def test_traced_training_and_sampling_equal_eager_ones(variant):
    """Everything of compiling but the code: what is traced, its backward pass and what it keeps."""
    backbone = tiny_backbone(blocks=3)
    editor = moved_editor(backbone, variant=variant, **({"width": 24} if variant == "predict_update" else {}))
    torch._dynamo.reset()

    @torch.no_grad()
    def sampled() -> Tensor:
        latents, source, sigma, text = clip(backbone, frames=2)
        texts = EditText(text, text, text)
        context = editor.prepare(backbone, source, texts, project=True)
        return editor.velocity(backbone, latents, sigma, context, texts)

    for checkpointing in (False, True):
        backbone.gradient_checkpointing = checkpointing
        expected = training_step(backbone, editor)
        with backbone.compiling(backend="aot_eager"):
            assert_same_step(training_step(backbone, editor), expected, COMPILED)
    reference = sampled()
    with backbone.compiling(backend="aot_eager"):
        assert relative(sampled(), reference) < COMPILED


@pytest.mark.slow  # a C++ compiler at work
def test_the_code_of_an_edited_block_equals_the_eager_one():
    backbone = tiny_backbone(blocks=1)
    editor = moved_editor(backbone, width=24)
    torch._dynamo.reset()
    expected = training_step(backbone, editor)
    with backbone.compiling():
        assert_same_step(training_step(backbone, editor), expected, COMPILED)


@pytest.mark.parametrize("variant", ["predict_update", "tuned_attention"])
def test_checkpointing_gives_the_same_training_step_bit_for_bit(variant):
    backbone = tiny_backbone(blocks=2)
    editor = moved_editor(backbone, variant=variant)
    expected = training_step(backbone, editor)
    backbone.gradient_checkpointing = True
    loss, gradients = training_step(backbone, editor)
    assert torch.equal(loss, expected[0])
    assert all(torch.equal(*pair) for pair in zip(gradients, expected[1], strict=True))


def test_one_text_for_all_sources_is_the_same_as_one_each():
    backbone = tiny_backbone(blocks=2)
    editor = moved_editor(backbone)
    expected = training_step(backbone, editor, one_source=False)
    assert_same_step(training_step(backbone, editor), expected, 1e-5)


def test_only_errors_of_compiling_count_as_such():
    assert compile_failed(torch._dynamo.exc.InternalTorchDynamoError(ValueError("x")))
    assert not compile_failed(torch.OutOfMemoryError("memory"))
    assert not compile_failed(RuntimeError("shapes"))
