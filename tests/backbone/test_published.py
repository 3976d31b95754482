"""The published sizes, built from their published configs with random weights."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest
import torch

from ivedit.backbone import random_backbone
from ivedit.backbone.published import published, published_config, published_names
from ivedit.backbone.random_weights import _built
from ivedit.data.text import TextStates
from ivedit.errors import IveditError

# transformer, VAE and text encoder of the published checkpoints
WEIGHTS = {
    "wan2.1_1.3b": (1_418_996_800, 126_892_531, 5_680_910_336),
    "wan2.1_14b": (14_288_491_584, 126_892_531, 5_680_910_336),
    "wan2.2_5b": (4_999_787_712, 704_688_668, 5_680_910_336),
}
SHAPES = {  # blocks, width, heads, latent channels, pixels per latent cell, frames per latent frame, flow shift
    "wan2.1_1.3b": (30, 1536, 12, 16, 8, 4, 3.0),
    "wan2.1_14b": (40, 5120, 40, 16, 8, 4, 3.0),
    "wan2.2_5b": (30, 3072, 24, 48, 16, 4, 5.0),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_published_backbone_has_the_published_number_of_weights_and_shapes(name):
    parts = ("transformer", "vae", "text_encoder")
    backbone = random_backbone(name, device="meta", dtype="bfloat16", components=parts)
    assert tuple(sum(w.numel() for w in getattr(backbone, part).parameters()) for part in parts) == WEIGHTS[name]
    spec = backbone.spec
    assert SHAPES[name] == (
        spec.blocks, spec.width, spec.heads, spec.latent_channels, spec.space_factor, spec.time_factor, spec.shift
    )  # fmt: skip
    assert spec.text_length == published(name).text_length == 512 and spec.patch == (1, 2, 2)
    assert "random weights" in spec.name and backbone.device.type == "meta"


def test_every_entry_of_a_published_config_is_one_that_the_class_takes():
    import diffusers

    for name in published_names():
        for part, cls in (("transformer", "WanTransformer3DModel"), ("vae", "AutoencoderKLWan"),
                          ("scheduler", "UniPCMultistepScheduler")):  # fmt: skip
            taken = inspect.signature(getattr(diffusers, cls).__init__).parameters
            config = published_config(name, part)
            assert config.pop("_class_name") == cls
            assert set(config) <= set(taken), f"{name} {part}"


def test_the_recommended_width_is_a_multiple_of_the_head_size_and_an_eighth_or_a_quarter():
    for name in published_names():
        config = published_config(name, "transformer")
        width = config["num_attention_heads"] * config["attention_head_dim"]
        assert published(name).editor_width % config["attention_head_dim"] == 0
        assert width / published(name).editor_width in (4, 8)


def test_the_docs_table_says_of_each_name_what_the_package_knows():
    page = (Path(__file__).resolve().parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    for name in published_names():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        known, (blocks, width, _, channels, space, time, _) = published(name), SHAPES[name]
        for part in (
            known.hub, f"{blocks}, {width}", f"{channels} channels, {space}x{space}x{time}",
            f"{sum(known.gigabytes.values()):.1f} GB", f"{known.editor_width} (C/{width // known.editor_width})",
        ):  # fmt: skip
            assert part in row


def test_a_true_size_block_runs_in_bfloat16_storage_with_finite_activations():
    backbone = random_backbone("wan2.1_1.3b", dtype="bfloat16", layers=1)
    kept = {name for name, w in backbone.transformer.named_parameters() if w.dtype == torch.float32}
    assert {name.split(".")[-2] for name in kept if "scale_shift_table" not in name} == {
        "linear_1", "linear_2", "norm2"
    }  # fmt: skip
    assert all("time_embedder" in name for name in kept if "linear" in name)
    assert backbone.spec.blocks == 1 and len(backbone.blocks) == 1
    text = TextStates(torch.randn(1, 6, 4096), torch.ones(1, 6, dtype=torch.bool))
    with torch.no_grad():
        velocity = backbone.velocity(torch.randn(1, 16, 1, 4, 4), torch.tensor([0.5]), text)
    assert velocity.isfinite().all() and 0.1 < velocity.std() < 10


def test_a_seed_is_one_set_of_weights_and_the_rotary_tables_are_the_models_own():
    small = {
        **published_config("wan2.2_5b", "transformer"),
        "num_attention_heads": 1, "attention_head_dim": 24, "ffn_dim": 32, "num_layers": 2,
        "text_dim": 8, "freq_dim": 8, "in_channels": 4, "out_channels": 4,
    }  # fmt: skip
    first, again, other = (
        _built("transformer", small, torch.float32, torch.device("cpu"), seed) for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.proj_out.weight, other.proj_out.weight)
    ordinary = type(first).from_config(small)
    assert torch.equal(first.rope.freqs_cos, ordinary.rope.freqs_cos)
    assert torch.equal(first.rope.freqs_sin, ordinary.rope.freqs_sin)


def test_one_embedding_stays_one_in_the_random_text_encoder():
    config = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    encoder = _built("text_encoder", config, torch.float32, torch.device("cpu"), 0)
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
    states = encoder(torch.tensor([[3, 4, 1]]), torch.ones(1, 3)).last_hidden_state
    assert states.isfinite().all()


def test_names_parts_and_layers_that_do_not_exist_are_told():
    with pytest.raises(IveditError, match=r"did you mean 'wan2\.1_1\.3b'|wan2\.1_1\.3b"):
        random_backbone("wan2.1-1.3b")
    with pytest.raises(IveditError, match="unknown components"):
        random_backbone("wan2.1_1.3b", device="meta", components=("unet",))
    with pytest.raises(IveditError, match="layers: 0"):
        random_backbone("wan2.1_1.3b", device="meta", layers=0)


def test_modules_of_full_width_on_a_large_backbone_are_warned_about_with_the_recommended_width(caplog):
    from ivedit.config.schema import EditorConfig
    from ivedit.editor import count_weights

    spec = dataclasses.replace(random_backbone("wan2.1_14b", device="meta").spec, name="wan2.1_14b")
    wide = count_weights(EditorConfig(), spec)
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"{wide / 1e9:.1f} billion trained weights" in said and "editor.width=640 has" in said
    caplog.clear()
    assert count_weights(EditorConfig(width=640), spec) < wide / 4
    count_weights(EditorConfig(variant="side_by_side"), spec)
    count_weights(EditorConfig(), dataclasses.replace(spec, width=256, heads=2))
    assert not caplog.records
    count_weights(EditorConfig(), dataclasses.replace(spec, name="./mine"))
    assert "editor.width=1280 has" in caplog.text
