"""Metrics with networks: what they compute, checked against the networks called by hand; what they refuse and skip."""

import hashlib
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ivedit.config.compose import from_dict
from ivedit.config.schema import EvaluationConfig
from ivedit.errors import ConfigError
from ivedit.evaluation.metrics import METRICS, Reference, build_metrics, skipped_metrics
from ivedit.evaluation.metrics.learned import Preprocess, weights_digest
from tests.evaluation.tiny_networks import clip_folder, dino_folder

LEARNED = {"clip_direction", "clip_frames", "clip_text", "dino_frames", "pickscore"}
VISION = {"kept_lpips", "lpips", "raft_warp_error"}  # tests/evaluation/test_vision_metrics.py


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("weights")
    return {"clip": clip_folder(place / "clip"), "dino": dino_folder(place / "dino"),
            "pickscore": clip_folder(place / "pickscore", seed=5)}  # fmt: skip


@pytest.fixture(scope="module")
def evaluation(folders):
    return EvaluationConfig(weights={name: str(folder) for name, folder in folders.items()})


def clips(count=3, frames=4):
    generator = torch.Generator().manual_seed(3)
    source = torch.rand(count, frames, 3, 48, 40, generator=generator)
    edited = torch.rand(count, frames, 3, 48, 40, generator=generator)
    return edited, Reference(
        source, source, torch.zeros(count, frames, 1, 48, 40), captions=["a red circle", "", "a blue square"][:count],
        source_captions=["a blue circle", "a grey circle", ""][:count],
    )  # fmt: skip


def values(evaluation, edited, reference):
    metrics = build_metrics(evaluation)
    for name in LEARNED:
        metrics[name].update(edited, reference)
    return {name: metrics[name].per_clip()[1] for name in LEARNED}


@torch.no_grad()
def test_values_are_those_of_the_network_called_by_hand(folders, evaluation):
    from transformers import AutoTokenizer, CLIPModel

    edited, reference = clips()
    found = values(evaluation, edited, reference)
    model = CLIPModel.from_pretrained(folders["clip"]).eval()
    prepare, tokenizer = Preprocess.of(folders["clip"]), AutoTokenizer.from_pretrained(folders["clip"])

    def words(text):
        one = model(input_ids=tokenizer(text, return_tensors="pt").input_ids, pixel_values=torch.zeros(1, 3, 32, 32))
        return one.text_embeds[0]

    def pictures(clip):
        token = tokenizer("a", return_tensors="pt").input_ids
        return model(input_ids=token, pixel_values=prepare(clip)).image_embeds

    frames, before = pictures(edited[0]), pictures(reference.source[0])
    target, source = words("a red circle"), words("a blue circle")
    assert found["clip_text"][0] == pytest.approx(float((frames @ target).mean()), abs=1e-5)
    direction = F.cosine_similarity(frames - before, (target - source)[None], dim=-1).mean()
    assert found["clip_direction"][0] == pytest.approx(float(direction), abs=1e-4)
    near = F.cosine_similarity(frames[1:], frames[:-1], dim=-1).mean()
    assert found["clip_frames"][0] == pytest.approx(float(near), abs=1e-5)


@torch.no_grad()
def test_pickscore_is_the_scaled_cosine_and_dino_compares_with_the_neighbour_and_the_first(folders, evaluation):
    from transformers import CLIPModel, Dinov2Model

    edited, reference = clips()
    found = values(evaluation, edited, reference)
    clip = CLIPModel.from_pretrained(folders["pickscore"])
    assert found["pickscore"][0].abs() <= clip.logit_scale.exp() and found["pickscore"][0] != found["clip_text"][0]
    dino = Dinov2Model.from_pretrained(folders["dino"]).eval()
    tokens = dino(pixel_values=Preprocess.of(folders["dino"])(edited[0])).last_hidden_state[:, 0]
    neighbour = F.cosine_similarity(tokens[1:], tokens[:-1], dim=-1).mean()
    first = F.cosine_similarity(tokens[1:], tokens[:1], dim=-1).mean()
    assert found["dino_frames"][0] == pytest.approx(float(neighbour + first) / 2, abs=1e-5)


def test_without_captions_there_is_no_value_and_a_source_copy_has_no_direction(evaluation):
    edited, reference = clips()
    found = values(evaluation, edited, reference)
    assert found["clip_text"].isnan().tolist() == [False, True, False]
    assert found["clip_direction"].isnan().tolist() == [False, True, True]
    copied = values(evaluation, reference.source, reference)
    assert copied["clip_direction"].isnan().all()
    frozen = values(evaluation, edited[:, :1].expand_as(edited).contiguous(), reference)
    assert frozen["clip_frames"].tolist() == pytest.approx([1] * 3) == frozen["dino_frames"].tolist()
    one = Reference(reference.source[:, :1], reference.source[:, :1], torch.zeros(3, 1, 1, 48, 40))
    assert values(evaluation, edited[:, :1], one)["clip_frames"].isnan().all()


def test_values_do_not_depend_on_the_batch(evaluation):
    edited, reference = clips()
    whole = values(evaluation, edited, reference)
    for row in range(3):
        part = Reference(
            reference.source[[row]], reference.source[[row]], reference.mask[[row]],
            captions=[reference.captions[row]], source_captions=[reference.source_captions[row]],
        )  # fmt: skip
        for name, found in values(evaluation, edited[[row]], part).items():
            torch.testing.assert_close(found, whole[name][[row]], atol=1e-4, rtol=0, equal_nan=True)


@pytest.mark.parametrize("size", [(48, 40), (120, 90), (33, 200)])
def test_pictures_are_prepared_as_the_networks_own_processor_does(folders, size):
    from transformers import CLIPImageProcessor

    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)
    theirs = CLIPImageProcessor.from_pretrained(folders["clip"])(picture, return_tensors="pt").pixel_values
    frame = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    ours = Preprocess.of(folders["clip"])(frame)
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().mean()) < 0.01  # theirs rounds to 8 bits after scaling


def test_a_metric_without_weights_is_skipped_by_name_and_never_0():
    skipped = skipped_metrics(EvaluationConfig())
    assert set(skipped) == LEARNED | VISION
    assert skipped["clip_text"] == "skipped (no evaluation.weights.clip)"
    assert (LEARNED | VISION).isdisjoint(build_metrics(EvaluationConfig()))
    assert {name for name in METRICS.names() if METRICS.info(name)["needs"]} == LEARNED | VISION


def test_weights_are_held_to_the_expected_sha256_and_never_read_from_pickles(folders, evaluation, tmp_path):
    digest = weights_digest(folders["clip"])
    assert digest == hashlib.sha256((folders["clip"] / "model.safetensors").read_bytes()).hexdigest()
    good = EvaluationConfig(weights={"clip": str(folders["clip"])}, sha256={"clip": digest})
    assert "clip_text" in build_metrics(good)
    bad = EvaluationConfig(weights={"clip": str(folders["clip"])}, sha256={"clip": "0" * 64})
    with pytest.raises(ConfigError, match=f"sha256 {digest}"):
        build_metrics(bad)
    pickled = tmp_path / "pickled"
    shutil.copytree(folders["clip"], pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="pickled weights are never loaded"):
        build_metrics(EvaluationConfig(weights={"clip": str(pickled)}))


def test_a_folder_that_is_no_network_is_one_plain_error(folders, tmp_path):
    edited, reference = clips(1)
    broken = tmp_path / "broken"
    shutil.copytree(folders["clip"], broken)
    (broken / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build_metrics(EvaluationConfig(weights={"clip": str(broken)}))["clip_frames"].update(edited, reference)
    (broken / "config.json").write_text((folders["clip"] / "config.json").read_text())
    (broken / "preprocessor_config.json").write_text("{}")
    again = broken.rename(tmp_path / "unprepared")
    with pytest.raises(ConfigError, match="prepare pictures"):
        build_metrics(EvaluationConfig(weights={"clip": str(again)}))["clip_frames"].update(edited, reference)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"weights": {"clop": "."}}, "did you mean clip"),
        ({"weights": {"clip": "nowhere"}}, "nowhere is not a folder"),
        ({"weights": {"raft": "."}}, r"\. is no \.pth or \.safetensors file"),
        ({"weights": {"lpips": "nowhere.pth"}}, r"nowhere\.pth is no \.pth"),
        ({"sha256": {"clip": "0" * 64}}, "there are no weights 'clip'"),
        ({"weights": {"clip": "."}, "sha256": {"clip": "ABC"}}, "not a sha256"),
    ],
)
def test_settings_about_weights_are_checked_before_anything_starts(section, said):
    with pytest.raises(ConfigError, match=said):
        from_dict({"evaluation": section})
