"""The modules do what the method's formulas say, and refuse settings that a backbone cannot have."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from backbone.tiny import tiny_backbone
from hypothesis import given, settings
from hypothesis import strategies as st

from ivedit.backbone import BackboneSpec
from ivedit.backbone.blocks import rotate
from ivedit.config import load
from ivedit.config.schema import EditorConfig
from ivedit.editor import (
    VARIANTS,
    EditText,
    build_editor,
    check_editors,
    editor_config,
    load_editor,
    parameter_count,
    read_editor_header,
    register,
    resolve_editor_file,
    save_editor,
    variant_names,
)
from ivedit.editor.attention import aligned_map, kept_rows
from ivedit.editor.context import module_text
from ivedit.editor.module import EditModule
from ivedit.errors import ConfigError, IveditError


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture
def module(backbone) -> EditModule:
    """A module of block 1 with random weights everywhere, so that no part is hidden by a zero."""
    built = build_editor({}, backbone).modules_of[1]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in built.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator) + (weight.ndim == 1))
    return built


def tensors(backbone, frames=2, rows=3, columns=4, length=5, real=(3, 5)):
    generator = torch.Generator().manual_seed(1)
    shape = (2, frames, rows * columns, backbone.spec.width)
    x, s = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    words = torch.randn(2, length, backbone.spec.width, generator=generator)
    mask = torch.arange(length)[None] < torch.tensor(real)[:, None]
    grid = backbone.grid(torch.empty(2, 4, 1, rows, columns))
    cos, sin = backbone.rotary(grid)
    return x, s, words, mask, (cos[0, :, 0], sin[0, :, 0])


def plain_attention(query, key, value, heads, mask=None):
    """Softmax attention written out, (N, r) each, heads in the last axis."""
    out = []
    size = query.shape[-1] // heads
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = query[:, part] @ key[:, part].T / size**0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        out.append(scores.softmax(-1) @ value[:, part])
    return torch.cat(out, dim=-1)


def turned(tokens, rotary, heads):
    return rotate(tokens.unflatten(-1, (heads, -1)).transpose(0, 1), *rotary).transpose(0, 1).flatten(1)


@torch.no_grad()
def test_the_module_is_predict_difference_update_gate_and_copy(backbone, module):
    x, s, words, mask, rotary = tensors(backbone)
    text = module_text(words, mask, 2, 12)
    edit, gate = module(x, module.project(s, rotary), text, rotary)
    heads = backbone.spec.heads
    predict, update, g = module.path.predict, module.path.update, module.gate
    for b in range(2):
        t = words[b][mask[b]]
        for f in range(2):
            xf, sf = x[b, f], s[b, f]
            q = turned(predict.norm_q(predict.query(xf)), rotary, heads)
            k = turned(predict.norm_k(predict.key(sf)), rotary, heads)
            z = plain_attention(q, k, predict.value(sf), heads)
            d = predict.out(z) - module.path.aligned(xf)
            q = turned(update.norm_q(update.query(xf)), rotary, heads)
            k = torch.cat((turned(update.norm_k(update.key(sf)), rotary, heads), update.text.norm(update.text.key(t))))
            u = update.out(plain_attention(q, k, torch.cat((update.value(d), update.text.value(t))), heads))
            a = g.from_x(xf) + g.from_s(sf)
            c = g.out(plain_attention(g.norm(g.query(a)), g.text.norm(g.text.key(t)), g.text.value(t), heads))
            expected_gate = torch.sigmoid(g.to_gate(F.silu(a + c)))
            expected = expected_gate * u + module.copy.out(z + module.copy.aligned(sf))
            torch.testing.assert_close(gate[b, f], expected_gate, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(edit[b, f], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@settings(max_examples=20, deadline=None)
@given(frames=st.integers(1, 3), rows=st.integers(1, 4), columns=st.integers(1, 4), extra=st.integers(0, 4))
def test_padding_is_never_read_and_frames_never_mix(frames, rows, columns, extra):
    backbone = tiny_backbone(blocks=1)
    module = build_editor({}, backbone).modules_of[0]
    for weight in module.parameters():
        weight.add_(0.1)
    x, s, words, mask, rotary = tensors(backbone, frames, rows, columns)
    n = rows * columns
    edit, _ = module(x, module.project(s, rotary), module_text(words, mask, frames, n), rotary)
    noisy = torch.where(mask[..., None], words, 100.0)
    noisy, longer = F.pad(noisy, (0, 0, 0, extra), value=7.0), F.pad(mask, (0, extra))
    again, _ = module(x, module.project(s, rotary), module_text(noisy, longer, frames, n), rotary)
    torch.testing.assert_close(again, edit, rtol=1e-4, atol=1e-5)
    f = frames - 1
    source = module.project(s[:, f:], rotary)
    alone, _ = module(x[:, f:], source, module_text(words, mask, 1, n), rotary)
    torch.testing.assert_close(alone[:, 0], edit[:, f], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_text_without_any_real_token_gives_numbers(backbone, module):
    x, s, words, mask, rotary = tensors(backbone, real=(0, 2))
    edit, gate = module(x, module.project(s, rotary), module_text(words, mask, 2, 12), rotary)
    assert torch.isfinite(edit).all() and torch.isfinite(gate).all()


@torch.no_grad()
def test_predict_starts_as_the_frozen_attention_of_a_single_frame(backbone):
    """With s = x the copied prediction is the block's own attention output: difference = O(mix - own value)."""
    module = build_editor({}, backbone).modules_of[0]
    x, _, words, mask, rotary = tensors(backbone, frames=1)
    source = module.project(x, rotary)
    predict = module.path.predict
    mixed = predict(
        predict.turned_queries(predict.query(x), rotary),
        source["predict_key"],
        source["predict_value"],
        module_text(words, mask, 1, 12),
    )
    attn = backbone.blocks[0].attn1
    grid = backbone.grid(torch.empty(2, 4, 1, 3, 4))
    frozen = attn(x[:, 0], None, None, backbone.rotary(grid))
    torch.testing.assert_close(predict.out(mixed)[:, 0], frozen, rtol=1e-4, atol=1e-5)
    own = attn.to_out[0](attn.to_v(x))
    torch.testing.assert_close(module.path.aligned(x), own, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_narrow_module_keeps_whole_heads_with_the_largest_value_circuit():
    backbone = tiny_backbone(heads=4, head_dim=12)
    attn = backbone.blocks[0].attn1
    attn.to_v.weight[12:24] *= 10
    attn.to_out[0].weight[:, 36:48] *= 8
    rows = kept_rows(attn, 24)
    assert rows.tolist() == [*range(12, 24), *range(36, 48)]
    factored = aligned_map(backbone.blocks[0], 24)
    x = torch.randn(3, 48)
    expected = attn.to_v(x)[:, rows] @ attn.to_out[0].weight[:, rows].T + attn.to_out[0].bias
    torch.testing.assert_close(factored(x), expected, rtol=1e-4, atol=1e-4)
    editor = build_editor({"width": 24}, backbone)
    assert torch.equal(editor.modules_of[0].path.update.query.weight, attn.to_q.weight[rows])


def test_full_width_is_about_sixteen_squares_a_block_and_a_quarter_about_a_fifth_of_the_block():
    """The counts that docs/method.md and the FLOP tables rest on, at Wan 2.1 1.3B's sizes."""
    spec = BackboneSpec("wan", 30, 1536, 12, 128, 8960, 4096, 16, (1, 2, 2), 8, 4, 3.0, 512, lambda: "")
    bare = editor_config({"text_update": False, "copy_path": False})
    count = VARIANTS.get("predict_update").expected_parameters
    assert count(bare, spec) / (30 * 1536**2) == pytest.approx(16, abs=0.1)
    frozen = 8 * 1536**2 + 2 * 1536 * 8960
    assert count(bare | {"width": 384}, spec) / (30 * frozen) == pytest.approx(0.2, abs=0.01)


def test_modules_sit_in_every_nth_block():
    backbone = tiny_backbone(blocks=4)
    assert build_editor({}, backbone).blocks == [0, 1, 2, 3]
    assert build_editor({"every": 2}, backbone).blocks == [1, 3]
    assert build_editor({"every": 4}, backbone).blocks == [2]
    with pytest.raises(ConfigError, match=r"editor\.every: 12 leaves none"):
        build_editor({"every": 12}, backbone)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"variant": "predict_updat"}, "did you mean predict_update"),
        ({"widht": 24}, r"editor\.widht is not a setting: did you mean width"),
        ({"width": 30}, "choose one of 24, 48"),
        ({"width": 96}, "choose one of 24, 48"),
        ({"gate": "open"}, "editor.gate: 'open'"),
        ({"gate_grain": "pixel"}, "editor.gate_grain: 'pixel'"),
        ({"match_parameters": 1000}, "has 141984 weights"),
        ({"variant": "side_by_side", "match_parameters": 1}, "none within 2%"),
    ],
)
def test_settings_that_cannot_be_built_are_refused_with_the_fix(backbone, config, message):
    with pytest.raises(ConfigError, match=message):
        build_editor(config, backbone)


def test_a_config_may_be_the_dataclass_an_omegaconf_node_or_a_partial_mapping(backbone):
    from omegaconf import OmegaConf

    dataclass = EditorConfig(every=2)
    node = OmegaConf.structured(dataclass)
    assert editor_config(dataclass) == editor_config(node) == editor_config({"every": 2})
    assert build_editor(node, backbone).config == dataclasses.asdict(dataclass)


@settings(max_examples=10, deadline=None)
@given(st.integers(110_000, 400_000))
def test_matched_counts_come_within_two_percent_for_any_target(wanted):
    backbone = tiny_backbone()
    editor = build_editor({"variant": "single_attention", "match_parameters": wanted}, backbone)
    assert abs(parameter_count(editor) - wanted) <= 0.02 * wanted


def test_plugins_register_variants_of_their_own(backbone, monkeypatch):
    monkeypatch.setattr(VARIANTS, "_objects", dict(VARIANTS._objects))  # so that no other test sees it
    base = VARIANTS.get("predict_update")

    @register("test_only_variant")
    class Mine(base):
        """A variant from outside the package."""

    assert "test_only_variant" in variant_names()
    assert isinstance(build_editor({"variant": "test_only_variant"}, backbone), Mine)
    with pytest.raises(ValueError, match="already registered"):
        register("predict_update")(Mine)
    with pytest.raises(TypeError, match=r"'no_editor': .* is no subclass of"):
        register("no_editor")(dict)


def test_a_variant_that_miscounts_its_weights_is_refused_when_it_is_built(backbone, monkeypatch):
    monkeypatch.setattr(VARIANTS, "_objects", dict(VARIANTS._objects))

    @register("test_only_miscounting")
    class Miscounting(VARIANTS.get("predict_update")):
        """Says that its path has no weights."""

        @staticmethod
        def path_size(config, width, spec):
            return 0

    with pytest.raises(IveditError, match=r"weights and says .* correct its expected_parameters"):
        build_editor({"variant": "test_only_miscounting"}, backbone)


def test_a_file_of_a_variant_that_nothing_registers_is_refused_before_its_weights_are_read(
    backbone, monkeypatch, tmp_path
):
    with monkeypatch.context() as imported:
        imported.setattr(VARIANTS, "_objects", dict(VARIANTS._objects))

        @register("test_only_forgotten")
        class Forgotten(VARIANTS.get("predict_update")):
            """Of a plugin."""

        file = save_editor(tmp_path / "a.safetensors", build_editor({"variant": "test_only_forgotten"}, backbone))
    cfg = load("imvideoedit", f"evaluation.editors.mine={file}")
    with pytest.raises(ConfigError, match=r"editors.mine=.*'test_only_forgotten'.*import its module first"):
        check_editors(cfg, backbone.spec)


def test_files_tell_what_they_are_and_refuse_what_does_not_fit(backbone, tmp_path):
    editor = build_editor({"width": 24}, backbone)
    file = save_editor(
        tmp_path / "run" / "checkpoints" / "editor.safetensors", editor, backbone_fingerprint="a" * 64,
        extra={"step": 7},
    )  # fmt: skip
    header = read_editor_header(file)
    assert header["config"] == editor.config and header["extra"] == {"step": 7}
    assert [p.name for p in file.parent.iterdir()] == ["editor.safetensors"]
    assert resolve_editor_file(file) == resolve_editor_file(tmp_path / "run") == file
    with pytest.warns(UserWarning, match="other weights"):
        load_editor(tmp_path / "run", backbone)
    with pytest.raises(IveditError, match=r"other shapes: blocks 3 \(here 2\)"):
        load_editor(file, tiny_backbone(blocks=2))
    with pytest.raises(IveditError, match="no trained editor at"):
        resolve_editor_file(tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(IveditError, match="not a safetensors file"):
        load_editor(tmp_path / "bad.safetensors", backbone)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(IveditError, match="holds no ivedit editor"):
        load_editor(tmp_path / "other.safetensors", backbone)


@torch.no_grad()
def test_averaged_weights_and_half_precision_can_be_saved_in_place_of_the_editors_own(backbone, tmp_path):
    editor = build_editor({}, backbone)
    average = {name: t + 1 for name, t in editor.state_dict().items()}
    file = save_editor(tmp_path / "e.safetensors", editor, backbone=backbone, weights=average, dtype=torch.bfloat16)
    loaded = load_editor(file, backbone).state_dict()
    for name, value in average.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], value.bfloat16().float())


def test_a_context_that_does_not_belong_is_refused(backbone):
    editor = build_editor({}, backbone)
    states = backbone.encode_text(["a", "a"])
    text = EditText(states, states, states)
    latents = torch.zeros(2, 4, 1, 6, 10)
    context = editor.prepare(backbone, latents, text)
    with pytest.raises(IveditError, match="the source context serves 4 clips"):
        editor.velocity(backbone, latents, torch.ones(2), context.repeat(2), text)
    with pytest.raises(IveditError, match=r"\(4, 1, 6, 8\)"):
        editor.velocity(backbone, latents[..., :8], torch.ones(2), context, text)
    projected = editor.prepare(backbone, latents, text, project=True)
    with pytest.raises(IveditError, match="sampling only"):
        editor.velocity(backbone, latents, torch.ones(2), projected, text)


def test_source_keys_and_values_are_kept_where_half_of_the_free_memory_holds_them_and_it_is_said(
    backbone, monkeypatch, caplog
):
    editor = build_editor({}, backbone)
    states = backbone.encode_text(["a", "a"])
    text, latents = EditText(states, states, states), torch.zeros(2, 4, 1, 6, 10)
    caplog.set_level("INFO", "ivedit")
    monkeypatch.setattr("ivedit.editor.two_stream.WORTH_TELLING", 1)
    kept = editor.prepare(backbone, latents, text, project=True)
    editor.prepare(backbone, latents, text, project=True)  # the next clip of an evaluation says nothing new
    assert len(kept.projected) == len(editor.blocks) and not kept.features
    assert caplog.messages == [f"the source's keys and values are kept for all steps: {kept.bytes() / 1e9:.2f} GB"]
    assert caplog.messages == [kept.note]
    monkeypatch.setattr("ivedit.editor.two_stream.WORTH_TELLING", 10**8)
    for free in (2 * kept.bytes(), 2 * kept.bytes() - 1):
        caplog.clear()
        monkeypatch.setattr("ivedit.editor.two_stream.free_memory", lambda device, free=free: free)
        context = editor.prepare(backbone, latents, text, project=True)
        assert bool(context.projected) == (free == 2 * kept.bytes())
        assert context.projected == () or not (context.note or caplog.messages)  # too little to tell whoever waits
    assert len(context.features) == len(editor.blocks) and context.bytes() < kept.bytes()
    assert caplog.messages == [context.note] and "do not fit beside" in context.note
    assert "each step projects them anew" in context.note
