"""One suite that every registered variant passes, whatever its mechanism."""

from __future__ import annotations

import copy

import pytest
import torch
from backbone.tiny import tiny_backbone

from ivedit.backbone import Backbone
from ivedit.editor import (
    VARIANTS,
    Editor,
    EditText,
    GateRecord,
    build_editor,
    load_editor,
    parameter_count,
    save_editor,
    variant_names,
)

# name of the case -> settings; every variant as it is, and every ablation and control of the method.
CASES: dict[str, dict] = {name: {"variant": name} for name in variant_names()} | {
    "no_gate": {"gate": "none"},
    "no_predict_update": {"variant": "single_attention"},
    "plain": {"variant": "single_attention", "gate": "none", "text_update": False, "copy_path": False},
    "gate_without_text": {"gate": "features"},
    "gate_per_head": {"gate_grain": "head"},
    "gate_per_token": {"gate_grain": "token"},
    "no_difference": {"difference": False},
    "no_text_update": {"text_update": False},
    "no_copy_path": {"copy_path": False},
    "every_second_block": {"every": 2},
    "two_rounds": {"rounds": 2},
    "half_width": {"width": 24},
    "half_width_single": {"variant": "single_attention", "width": 24},
    "joint_source": {"source_attention": "joint"},
    "token_map": {"mlp": 40},
    "matched": {"variant": "single_attention", "match_parameters": 142_000},
    "matched_side_by_side": {"variant": "side_by_side", "match_parameters": 142_000},
    "matched_tuned": {"variant": "tuned_attention", "match_parameters": 250_000},
}
GRIDS = [((1, 1, 1), 6, 10), ((1, 1, 1), 7, 9), ((1, 2, 2), 6, 10)]

_BACKBONES: dict = {}


def backbone_of(patch=(1, 1, 1), dtype=torch.float32) -> Backbone:
    """One backbone per patch and type for the whole module: nothing may change it (and a test says so)."""
    if (patch, dtype) not in _BACKBONES:
        _BACKBONES[patch, dtype] = tiny_backbone(patch=patch, dtype=dtype)
    return _BACKBONES[patch, dtype]


def texts(backbone: Backbone, batch: int) -> EditText:
    words = ["make the red circle blue", "remove the star", "", "turn the green square into a triangle"]
    encoded = backbone.encode_text((words * batch)[:batch])
    return EditText(encoded, encoded, backbone.encode_text([""] * batch))


def sample(frames: int, height: int = 6, width: int = 10, batch: int = 2, seed: int = 3):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 4, frames, height, width)
    latents, source = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return latents, source, torch.linspace(0.15, 0.95, batch)


def run(editor: Editor, backbone: Backbone, latents, source, sigma, text, **more) -> torch.Tensor:
    return editor.velocity(backbone, latents, sigma, editor.prepare(backbone, source, text), text, **more)


def train(editor: Editor, backbone: Backbone, steps: int = 4, frames: int = 1) -> Editor:
    """A few steps of any training: afterwards nothing in the editor is at its starting point."""
    latents, source, sigma = sample(frames, batch=3)
    text = texts(backbone, 3)
    optimizer = torch.optim.AdamW(editor.parameters(), lr=3e-3)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            (run(editor, backbone, latents, source, sigma, text) - source).square().mean().backward()
            optimizer.step()
    return editor


@pytest.fixture(scope="module")
def trained() -> dict[str, Editor]:
    return {}


def trained_editor(trained: dict[str, Editor], case: str) -> Editor:
    if case not in trained:
        trained[case] = train(build_editor(CASES[case], backbone_of()), backbone_of())
    return trained[case]


cases = pytest.mark.parametrize("case", CASES)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize(("patch", "height", "width"), GRIDS)
@cases
def test_at_the_start_the_output_is_the_frozen_backbones(case, patch, height, width, frames):
    backbone = backbone_of(patch)
    editor = build_editor(CASES[case], backbone)
    latents, source, sigma = sample(frames, height, width)
    text = texts(backbone, 2)
    velocity = run(editor, backbone, latents, source, sigma, text)
    assert velocity.shape == latents.shape and velocity.dtype == torch.float32
    if editor.uses_source_stream:
        assert torch.equal(velocity, backbone.velocity(latents, sigma, text.target))
        return
    # Both halves run as one batch: exactly the frozen backbone on that batch (CPU products round by batch size).
    both = backbone.velocity(torch.cat((latents, source)), torch.cat((sigma, 0 * sigma)), text.target[[0, 1, 0, 1]])
    assert torch.equal(velocity, both[:2])


@torch.no_grad()
@cases
def test_after_training_the_source_and_the_text_matter_and_scale_zero_is_frozen(case, trained):
    backbone, editor = backbone_of(), trained_editor(trained, case)
    latents, source, sigma = sample(5, 7, 9)
    text = texts(backbone, 2)
    edited = run(editor, backbone, latents, source, sigma, text)
    assert edited.shape == latents.shape
    frozen = backbone.velocity(latents, sigma, text.target)
    assert (edited - frozen).abs().max() > 1e-3
    assert (run(editor, backbone, latents, source.flip(0), sigma, text) - edited).abs().max() > 1e-4
    torch.testing.assert_close(
        run(editor, backbone, latents, source, sigma, text, scale=0.0), frozen, rtol=1e-4, atol=1e-5
    )
    half = run(editor, backbone, latents, source, sigma, text, scale=0.5)
    assert (half - frozen).abs().mean() < (edited - frozen).abs().mean()


@cases
def test_every_trained_weight_is_reached_by_gradients_within_a_few_steps(case, trained):
    backbone, editor = backbone_of(), copy.deepcopy(trained_editor(trained, case))
    editor.zero_grad()
    latents, source, sigma = sample(1, batch=3)
    text = texts(backbone, 3)
    (run(editor, backbone, latents, source, sigma, text) - source).square().mean().backward()
    dead = [name for name, p in editor.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not dead
    assert all(p.dtype == torch.float32 and p.requires_grad for p in editor.parameters())


@cases
def test_frozen_weights_never_change_and_never_get_gradients(case):
    backbone = backbone_of()
    before = backbone.fingerprint(parts=("transformer", "vae", "text_encoder"), exact=True)
    train(build_editor(CASES[case], backbone), backbone, steps=2)
    assert backbone.fingerprint(parts=("transformer", "vae", "text_encoder"), exact=True) == before
    assert all(p.grad is None for p in backbone.parameters())


def test_the_backbone_is_no_part_of_the_editor():
    editor = build_editor({}, backbone_of())
    assert not any(isinstance(module, Backbone) for module in editor.modules())
    assert sum(p.numel() for p in editor.parameters()) == parameter_count(editor)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5])
@cases
def test_a_sample_does_not_depend_on_its_batch_neighbours(case, frames, trained):
    backbone, editor = backbone_of(), trained_editor(trained, case)
    latents, source, sigma = sample(frames, batch=3)
    text = texts(backbone, 3)
    together = run(editor, backbone, latents, source, sigma, text)
    for i in range(3):
        alone = run(editor, backbone, latents[[i]], source[[i]], sigma[[i]], text[i])
        torch.testing.assert_close(together[[i]], alone, rtol=1e-4, atol=2e-5)
    other = latents.clone()
    other[1:] = 9.0
    torch.testing.assert_close(run(editor, backbone, other, source, sigma, text)[:1], together[:1], rtol=0, atol=1e-6)


@torch.no_grad()
@cases
def test_save_then_load_gives_the_same_output_and_settings(case, trained, tmp_path):
    backbone, editor = backbone_of(), trained_editor(trained, case)
    file = save_editor(tmp_path / "editor.safetensors", editor, backbone_fingerprint=backbone.fingerprint(), extra={})
    loaded = load_editor(file, backbone)
    latents, source, sigma = sample(5)
    text = texts(backbone, 2)
    assert loaded.config == editor.config and loaded.name == editor.name
    assert torch.equal(
        run(loaded, backbone, latents, source, sigma, text), run(editor, backbone, latents, source, sigma, text)
    )


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("storage", ["autocast", "bfloat16"])
@cases
def test_bfloat16_stays_within_tolerance_of_float32(case, storage, frames, trained):
    editor = trained_editor(trained, case)
    latents, source, sigma = sample(frames, 7, 9)
    text = texts(backbone_of(), 2)
    exact = run(editor, backbone_of(), latents, source, sigma, text)
    if storage == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = run(editor, backbone_of(), latents, source, sigma, text)
    else:
        low = run(editor, backbone_of(dtype=torch.bfloat16), latents, source, sigma, text)
    assert low.dtype == torch.float32
    assert (low - exact).square().mean().sqrt() < 0.03 * exact.std()


@cases
def test_autocast_training_reaches_every_weight_in_float32(case):
    backbone = backbone_of(dtype=torch.bfloat16)
    editor = build_editor(CASES[case], backbone)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        train(editor, backbone, steps=3)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in editor.parameters())
    assert all(torch.isfinite(p).all() for p in editor.parameters())


@cases
def test_parameter_count_is_the_registered_one(case):
    backbone = backbone_of()
    editor = build_editor(CASES[case], backbone)
    expected = VARIANTS.get(editor.config["variant"]).expected_parameters(editor.config, backbone.spec)
    assert parameter_count(editor) == expected
    wanted = editor.config["match_parameters"]
    if wanted is not None:
        assert abs(parameter_count(editor) - wanted) <= 0.02 * wanted
        assert editor.name.endswith("+matched")


@cases
def test_the_same_seed_builds_the_same_editor_and_leaves_the_random_state_alone(case):
    torch.manual_seed(5)
    first = build_editor(CASES[case], backbone_of(), seed=1).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    second = build_editor(CASES[case], backbone_of(), seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
@cases
def test_one_source_pass_serves_every_step_branch_and_draw(case, trained):
    backbone, editor = backbone_of(), trained_editor(trained, case)
    latents, source, sigma = sample(5)
    text, dropped = texts(backbone, 2), EditText(*[backbone.encode_text(["", ""])] * 3)
    expected = [run(editor, backbone, latents, source, s * sigma, text) for s in (1.0, 0.5)]
    negative = run(editor, backbone, latents, source, sigma, dropped)
    before = backbone.source_passes
    context = editor.prepare(backbone, source, text)
    for s, velocity in zip((1.0, 0.5), expected, strict=True):
        assert torch.equal(editor.velocity(backbone, latents, s * sigma, context, text), velocity)
    # Guidance as two calls, and as one call on a doubled batch; two draws of each source.
    torch.testing.assert_close(editor.velocity(backbone, latents, sigma, context, dropped), negative)
    order = [0, 1, 0, 1]
    doubled = EditText(*[type(a).cat((a, b)) for a, b in zip(parts(text), parts(dropped), strict=True)])
    both = editor.velocity(backbone, latents[order], sigma[order], context.select(order), doubled)
    torch.testing.assert_close(both, torch.cat((expected[0], negative)), rtol=1e-4, atol=2e-5)
    draws = torch.stack((sigma, 0.5 * sigma), dim=1).flatten()
    drawn = editor.velocity(
        backbone, latents.repeat_interleave(2, 0), draws, context.repeat(2), text.repeat_interleave(2)
    )
    torch.testing.assert_close(drawn[0::2], expected[0], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(drawn[1::2], expected[1], rtol=1e-4, atol=2e-5)
    assert backbone.source_passes - before == int(editor.uses_source_stream)


def parts(text: EditText):
    return text.target, text.gate, text.source


@torch.no_grad()
@cases
def test_projected_context_gives_the_same_velocity(case, trained):
    backbone, editor = backbone_of(), trained_editor(trained, case)
    latents, source, sigma = sample(5, 7, 9)
    text = texts(backbone, 2)
    projected = editor.prepare(backbone, source, text, project=True)
    expected = run(editor, backbone, latents, source, sigma, text)
    assert torch.equal(editor.velocity(backbone, latents, sigma, projected, text), expected)
    order = [1, 0, 1]
    chosen = editor.velocity(backbone, latents[order], sigma[order], projected.repeat(2).select([2, 1, 3]), text[order])
    torch.testing.assert_close(chosen, expected[order], rtol=1e-4, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5])
@cases
def test_gate_maps_have_one_value_per_token_and_start_open(case, frames):
    backbone = backbone_of()
    editor = build_editor(CASES[case], backbone)
    latents, source, sigma = sample(frames, 7, 9)
    record = GateRecord()
    run(editor, backbone, latents, source, sigma, texts(backbone, 2), record=record)
    gated = editor.uses_source_stream and editor.config["gate"] != "none"
    assert sorted(record.maps) == (editor.blocks if gated else [])
    if gated:
        maps = record.stacked()
        assert maps.shape == (len(editor.blocks), 2, frames, 63)
        torch.testing.assert_close(maps, torch.full_like(maps, torch.sigmoid(torch.tensor(1.0)).item()))


@cases
def test_gradient_checkpointing_gives_the_same_gradients(case, trained):
    grads = []
    for checkpointing in (False, True):
        backbone = tiny_backbone()
        backbone.gradient_checkpointing = checkpointing
        editor = copy.deepcopy(trained_editor(trained, case))
        editor.zero_grad()
        latents, source, sigma = sample(1)
        run(editor, backbone, latents, source, sigma, texts(backbone, 2)).square().sum().backward()
        grads.append([p.grad for p in editor.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        assert torch.equal(plain, recomputed)
