"""The parameter-matched ablations have as many trained weights as the method, on the shipped pipeline's shapes."""

from __future__ import annotations

import dataclasses

import pytest

from ivedit.backbone import BackboneSpec
from ivedit.config import Config, PretrainConfig, load
from ivedit.editor import VARIANTS


def trained_weights(config: Config) -> int:
    """Number of trained weights on the DiT that pretrain_dit makes, without building it."""
    made: PretrainConfig = load("pretrain_dit").pretrain
    spec = BackboneSpec(
        name="wan-sprites", blocks=made.layers, width=64 * made.heads, heads=made.heads, head_dim=64,
        ffn_width=made.ffn, text_dim=256, latent_channels=16, patch=(1, 1, 1), space_factor=8, time_factor=4,
        shift=3.0, text_length=32, _fingerprint=lambda: "",
    )  # fmt: skip
    return VARIANTS.get(config.editor.variant).expected_parameters(dataclasses.asdict(config.editor), spec)


@pytest.mark.parametrize("name", ["ablation_no_gate", "ablation_no_predict_update", "ablation_plain"])
def test_a_matched_ablation_has_as_many_weights_as_the_method(name: str):
    method = trained_weights(load("imvideoedit"))
    assert trained_weights(load(name)) < 0.98 * method
    matched = load(f"{name}_matched")
    assert abs(trained_weights(matched) / method - 1) < 0.005, f"set editor.match_parameters to {method}"


@pytest.mark.parametrize(("name", "share"), [("control_every_2", 1 / 2), ("control_every_4", 1 / 4)])
def test_fewer_modules_are_the_share_of_the_weights_that_the_summary_says(name: str, share: float):
    assert trained_weights(load(name)) == pytest.approx(share * trained_weights(load("imvideoedit")))
