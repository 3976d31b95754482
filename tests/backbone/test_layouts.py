"""Folders in the published layouts: sharded or not, in either type, in the hub's cache, whole, broken or not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ivedit.backbone import Backbone
from ivedit.backbone.identity import encoder_files_fingerprint, file_digest
from ivedit.backbone.published import published, published_config
from ivedit.backbone.weights import read_transformer
from ivedit.errors import IveditError
from tests.backbone.layouts import HEAD, SMALL, as_hub_cache, save_layout, small_transformer

NAMES = list(SMALL)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """Wan 2.1 14B's layout: a dozen shards with an index, in bfloat16."""
    folder = tmp_path_factory.mktemp("wan") / "sharded"
    return save_layout("wan2.1_14b", folder, dtype=torch.bfloat16, shard="12KB")


def weights_of(folder: Path) -> dict:
    return json.loads((folder / "transformer" / "config.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_in_a_published_layout_is_read_as_published(name, tmp_path):
    backbone = Backbone.load(save_layout(name, tmp_path / name))
    spec, vae = backbone.spec, published_config(name, "vae")
    assert (spec.blocks, spec.width) == (SMALL[name]["num_layers"], HEAD * SMALL[name]["num_attention_heads"])
    assert (spec.latent_channels, spec.space_factor, spec.time_factor) == (
        vae["z_dim"], vae["scale_factor_spatial"], vae["scale_factor_temporal"]
    )  # fmt: skip
    assert spec.shift == published_config(name, "scheduler")["flow_shift"] and spec.patch == (1, 2, 2)
    assert spec.text_length == published(name).text_length
    side = spec.size_multiple
    pixels = torch.rand(1, 5, 3, side, 2 * side)
    latents = backbone.encode_pixels(pixels)
    assert latents.shape == (1, vae["z_dim"], 2, side // spec.space_factor, 2 * side // spec.space_factor)
    assert backbone.decode_latents(latents).shape == pixels.shape
    text = backbone.encode_text(["make the circle red"])
    with torch.no_grad():
        mine = backbone.velocity(latents, torch.tensor([0.5]), text)
        theirs = backbone.transformer(latents, torch.tensor([500.0]), text.states, return_dict=False)[0]
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["12KB", "10GB"])
def test_weights_read_tensor_by_tensor_are_those_that_diffusers_reads(tmp_path, stored, shard):
    from diffusers import WanTransformer3DModel

    folder = save_layout("wan2.1_1.3b", tmp_path / "wan", dtype=stored, shard=shard)
    assert (len(list((folder / "transformer").glob("*.safetensors"))) > 1) == (shard == "12KB")
    for dtype in (torch.float32, torch.bfloat16):
        mine = read_transformer(folder, weights_of(folder), dtype, torch.device("cpu"))
        theirs = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=dtype)
        own, other = mine.state_dict(), theirs.state_dict()
        assert list(own) == list(other)
        assert all(own[k].dtype == other[k].dtype and torch.equal(own[k], other[k]) for k in own)
        assert torch.equal(mine.rope.freqs_cos, theirs.rope.freqs_cos)
        assert dict(mine.config) == {k: v for k, v in theirs.config.items() if k in mine.config}


def test_a_shard_that_did_not_arrive_is_named(sharded, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / "part")
    shards = sorted((folder / "transformer").glob("*.safetensors"))
    shards[2].unlink()
    with pytest.raises(IveditError, match=f"transformer/{shards[2].name} is missing; fetch it again"):
        Backbone.load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no index of safetensors files"),
        ("[1]", "is no index of safetensors files"),
        (json.dumps({"weight_map": {"a": "../../secret.safetensors"}}), "names ../../secret.safetensors, which is no"),
        (json.dumps({"weight_map": {"a": "weights.bin"}}), "names weights.bin, which is no safetensors file"),
    ],
)
def test_an_index_that_is_none_or_points_elsewhere_is_refused(sharded, tmp_path, content, message):
    folder = shutil.copytree(sharded, tmp_path / "part")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
    with pytest.raises(IveditError, match=message):
        Backbone.load(folder, components=("transformer",))


def test_another_variant_of_the_weights_beside_them_is_not_read(sharded, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / "both")
    index = folder / "transformer" / "diffusion_pytorch_model.fp16.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "diffusion_pytorch_model.fp16-00001-of-00001.safetensors"}}))
    mine = read_transformer(folder, weights_of(folder), torch.float32, torch.device("cpu"))
    other = Backbone.load(sharded, components=("transformer",)).transformer
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {**w, "blocks.0.extra": torch.zeros(1)}, "blocks.0.extra is no weight of this transformer"),
        (lambda w: {k: v for k, v in w.items() if k != "proj_out.bias"}, "lacks 1 weights, e.g. proj_out.bias"),
        (lambda w: {**w, "proj_out.bias": torch.zeros(3)}, r"proj_out.bias is \(3,\), but the config asks for \(64,\)"),
        (None, "cannot be read"),
    ],
)
def test_weights_that_are_not_the_configs_are_refused_by_name(tmp_path, change, message):
    folder = save_layout("wan2.1_1.3b", tmp_path / "wan")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    if change is None:
        file.write_bytes(file.read_bytes()[:1000])
    else:
        save_file(change(load_file(file)), file)
    with pytest.raises(IveditError, match=message):
        read_transformer(folder, weights_of(folder), torch.float32, torch.device("cpu"))


def test_two_experts_are_refused_also_in_the_layout_of_wan_22(tmp_path):
    folder = save_layout(
        "wan2.1_14b", tmp_path / "a14b", transformer_2=small_transformer("wan2.1_14b", 3), boundary_ratio=0.875
    )
    with pytest.raises(IveditError, match="second expert"):
        Backbone.load(folder)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub client, which is offline in tests."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_a_known_name_finds_the_hubs_cache_without_a_network(sharded, cache):
    known = published("wan2.1_14b")
    snapshot = as_hub_cache(sharded, cache, known.hub)
    by_name, by_hub, by_folder = Backbone.load(known.name), Backbone.load(known.hub), Backbone.load(sharded)
    assert by_name.spec.name == "wan2.1_14b" and by_hub.spec.name == known.hub
    assert by_name.fingerprint() == by_hub.fingerprint() == by_folder.fingerprint()
    # a blob is named by its digest: the encoders are recognised without being read
    prints = [encoder_files_fingerprint(p, torch.float32, file_digest) for p in (known.name, sharded)]
    assert prints[0] == prints[1]
    weights = next((snapshot / "text_encoder").glob("*.safetensors"))
    weights.resolve().write_bytes(b"not read")
    assert file_digest(weights) == weights.resolve().name


def test_a_folder_of_the_known_name_beside_the_run_is_used(sharded, cache, tmp_path):
    shutil.copytree(sharded, tmp_path / "wan2.1_14b")
    assert Backbone.load("wan2.1_14b", components=("transformer",)).spec.blocks == 3


def test_a_cache_that_holds_only_a_part_serves_that_part(sharded, cache, tmp_path):
    known = published("wan2.1_14b")
    slim = shutil.copytree(sharded, tmp_path / "slim", ignore=shutil.ignore_patterns("text_encoder", "tokenizer"))
    as_hub_cache(slim, cache, known.hub)
    assert Backbone.load(known.name, components=("transformer", "vae")).vae is not None
    with pytest.raises(IveditError, match=r"only a part of it is here, without text_encoder/config\.json"):
        Backbone.load(known.name)


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_not_here_are_told_with_their_size_and_the_way_to_get_them(name, cache):
    known = published(name)
    with pytest.raises(IveditError) as caught:
        Backbone.load(name)
    text = str(caught.value)
    assert f"{name} ({known.hub}) is not on this machine" in text and "\n" not in text
    assert f"{sum(known.gigabytes.values()):.1f} GB: transformer {known.gigabytes['transformer']:g}" in text
    assert f"`hf download {known.hub} --local-dir {name}`" in text and f"backbone=./{name}" in text
    with pytest.raises(IveditError, match=rf"\({known.gigabytes['transformer']:.1f} GB\)"):
        Backbone.load(name, components=("transformer",))
