"""Folders in diffusers' layout load from their configs alone; what cannot be run is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from backbone.tiny import save_pipeline, tiny_backbone, tiny_vae
from ivedit.backbone import Backbone
from ivedit.backbone.identity import bits_digest
from ivedit.backbone.loading import check_parts
from ivedit.config.wan_folder import flow_shift, vae_factors
from ivedit.errors import IveditError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("wan") / "tiny", patch=(1, 2, 2))


def changed(folder: Path, to: Path, file: str, **values) -> Path:
    """A copy of the folder with some entries of one JSON file changed."""
    shutil.copytree(folder, to)
    path = to / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return to


def test_everything_about_a_folder_is_read_from_its_configs(folder):
    spec = Backbone.load(folder).spec
    assert (spec.blocks, spec.width, spec.heads, spec.head_dim, spec.ffn_width) == (3, 48, 2, 24, 80)
    assert (spec.text_dim, spec.latent_channels, spec.patch) == (16, 4, (1, 2, 2))
    assert (spec.space_factor, spec.time_factor, spec.shift, spec.text_length) == (4, 4, 3.0, 12)
    assert Backbone.load(folder, text_length=20).spec.text_length == 20


def test_a_loaded_folder_gives_the_same_velocity_as_the_parts_it_was_saved_from(folder):
    memory, loaded = tiny_backbone(patch=(1, 2, 2)), Backbone.load(folder)
    latents, sigma = torch.randn(1, 4, 2, 6, 10), torch.tensor([0.5])
    text = loaded.encode_text(["remove the star"])
    assert torch.equal(text.states, memory.encode_text(["remove the star"]).states)
    assert torch.equal(loaded.velocity(latents, sigma, text), memory.velocity(latents, sigma, text))


def test_only_the_asked_components_are_read(folder, tmp_path):
    slim = tmp_path / "slim"
    shutil.copytree(folder, slim)
    for part in ("vae", "text_encoder"):
        for file in (slim / part).glob("*.safetensors"):
            file.unlink()
    backbone = Backbone.load(slim, components=("transformer",))
    assert backbone.vae is None and backbone.text_encoder is None
    assert backbone.spec.space_factor == 4
    with pytest.raises(IveditError, match="loaded without its vae"):
        backbone.encode_pixels(torch.zeros(1, 1, 3, 16, 16))
    with pytest.raises(IveditError, match="loaded without its text_encoder"):
        backbone.encode_text(["a"])
    encoders = Backbone.load(folder, components=("vae", "text_encoder"))
    assert encoders.transformer is None and encoders.spec.width == 48


def test_one_checkpoint_has_one_fingerprint_in_both_storage_types(folder):
    single, half = Backbone.load(folder), Backbone.load(folder, dtype="bfloat16")
    assert single.spec.fingerprint == single.fingerprint() == half.fingerprint()
    before = single.fingerprint(exact=True)
    assert before != half.fingerprint(exact=True)
    assert single.fingerprint(parts=("vae", "text_encoder")) != single.fingerprint()
    with torch.no_grad():
        weight = single.blocks[1].attn1.to_q.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert single.fingerprint(exact=True) != before  # one bit is enough


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_any_bit_and_any_two_places_change_the_digest_of_bits(dtype):
    torch.manual_seed(0)
    weights = {"a": torch.randn(3, 4, 5).mul(50).to(dtype), "b": torch.randn(7).mul(50).to(dtype), "c": torch.zeros(0)}
    digests = {bits_digest(weights.items())}
    assert bits_digest(weights.items()) in digests
    for name, (first, second) in (("a", (0, 1)), ("a", (3, 58)), ("b", (2, 6))):
        changed = {key: value.clone() for key, value in weights.items()}
        flat = changed[name].flatten()
        flat[[first, second]] = flat[[second, first]]
        changed[name] = flat.view_as(weights[name])
        digests.add(bits_digest(changed.items()))
        bits = weights[name].clone()
        bits.view(torch.uint8).flatten()[-1] ^= 1
        digests.add(bits_digest({**weights, name: bits}.items()))
    digests.add(bits_digest({**weights, "a": weights["a"].view(4, 3, 5)}.items()))
    assert len(digests) == 7  # the last bit of `a` is one and the same change twice


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("model_index.json", {"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "transformer_2"),
        ("model_index.json", {"boundary_ratio": 0.875}, "boundary_ratio = 0.875"),
        ("model_index.json", {"_class_name": "WanImageToVideoPipeline"}, "WanImageToVideoPipeline"),
        ("model_index.json", {"_class_name": "WanVACEPipeline"}, "WanVACEPipeline"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderKL"]}, "vae is declared as AutoencoderKL"),
        ("model_index.json", {"text_encoder": ["transformers", "CLIPTextModel"]}, "CLIPTextModel"),
        ("transformer/config.json", {"image_dim": 1280}, "image_dim = 1280"),
        ("transformer/config.json", {"added_kv_proj_dim": 48}, "added_kv_proj_dim = 48"),
        ("transformer/config.json", {"in_channels": 8}, "in_channels = 8 but out_channels = 4"),
        ("transformer/config.json", {"in_channels": 8, "out_channels": 8}, "z_dim = 4"),
        ("transformer/config.json", {"patch_size": [2, 2, 2]}, "no patches over time"),
        ("transformer/config.json", {"_class_name": "WanVACETransformer3DModel"}, "WanVACETransformer3DModel"),
        ("scheduler/scheduler_config.json", {"shift": None}, "flow_shift"),
    ],
)
def test_folders_that_cannot_be_run_are_refused_by_name(folder, tmp_path, file, values, message):
    with pytest.raises(IveditError, match=message):
        Backbone.load(changed(folder, tmp_path / "other", file, **values))


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(folder, tmp_path, part):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    shutil.rmtree(other / part)
    with pytest.raises(IveditError, match=f"no {part} folder"):
        Backbone.load(other)


def test_pickled_weights_are_refused(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for file in (other / "transformer").glob("*.safetensors"):
        torch.save({}, file.with_suffix(".bin"))
        file.unlink()
    with pytest.raises(IveditError, match="safetensors"):
        Backbone.load(other)


def test_weights_that_are_cut_off_are_told_before_anything_is_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "cut")
    (file,) = (tmp_path / "cut" / "transformer").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(IveditError, match=rf"{file.name} cannot be read .*fetch it again"):
        check_parts(tmp_path / "cut")


def test_paths_that_are_no_pipeline_are_told(tmp_path):
    with pytest.raises(IveditError, match="has no model_index"):
        Backbone.load(tmp_path)
    with pytest.raises(IveditError, match="neither a folder nor a hub name"):
        Backbone.load(tmp_path / "missing")
    with pytest.raises(IveditError, match="could not be fetched"):
        Backbone.load("nobody/nothing")  # the tests run offline
    with pytest.raises(IveditError, match="dtype: 'half'"):
        Backbone.load(tmp_path, dtype="half")


def test_factors_follow_from_the_structure_of_the_vae():
    wan21: dict = {}  # the class's defaults are Wan 2.1's
    wan22 = {"z_dim": 48, "patch_size": 2, "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]}
    assert vae_factors(wan21) == (16, 8, 4)
    assert vae_factors(wan22) == (48, 16, 4)
    assert flow_shift("x", {"flow_shift": 5.0, "shift": 1.0}) == 5.0


def test_text_is_padded_with_zeros_after_the_encoder_as_the_pipeline_does(folder):
    from diffusers import WanPipeline

    backbone = Backbone.load(folder)
    texts = ["make the  red &amp; circle blue", "", "remove " * 40]
    mine = backbone.encode_text(texts)
    pipe = WanPipeline.from_pretrained(folder, text_encoder=backbone.text_encoder)
    theirs, _ = pipe.encode_prompt(texts, do_classifier_free_guidance=False, max_sequence_length=12)
    assert torch.equal(mine.states, theirs)
    assert mine.mask.sum(dim=1).tolist() == [7, 1, 12]
    assert torch.count_nonzero(mine.states[~mine.mask]) == 0
    with pytest.raises(IveditError, match="no texts"):
        backbone.encode_text([])


def test_pixels_round_trip_in_shape_and_range_and_latents_are_the_vaes_normalised_mode(monkeypatch):
    backbone = tiny_backbone()
    pixels = torch.rand(3, 9, 3, 16, 24)
    latents = backbone.encode_pixels(pixels)
    assert latents.shape == (3, 4, 3, 4, 6)
    vae = tiny_vae()
    mode = vae.encode(pixels.permute(0, 2, 1, 3, 4) * 2 - 1).latent_dist.mode()
    mean, std = (torch.tensor(vae.config[k]).view(1, -1, 1, 1, 1) for k in ("latents_mean", "latents_std"))
    torch.testing.assert_close(latents, (mode - mean) / std)
    decoded = backbone.decode_latents(latents)
    assert decoded.shape == pixels.shape and decoded.min() >= 0 and decoded.max() <= 1
    monkeypatch.setattr("ivedit.backbone.encoding._CPU_VALUES", 1)  # one clip at a time
    torch.testing.assert_close(backbone.encode_pixels(pixels), latents)
    torch.testing.assert_close(backbone.decode_latents(latents), decoded)


def test_clips_the_vae_cannot_take_are_refused_with_the_nearest_that_fits():
    backbone = tiny_backbone(patch=(1, 2, 2))
    with pytest.raises(IveditError, match=r"7 frames: the VAE takes 1 \+ a multiple of 4, e\.g\. 5"):
        backbone.encode_pixels(torch.rand(1, 7, 3, 16, 16))
    with pytest.raises(IveditError, match="height must divide by 8"):
        backbone.encode_pixels(torch.rand(1, 5, 3, 20, 16))
