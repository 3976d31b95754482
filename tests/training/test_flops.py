"""Counted FLOPs: linear in pairs, doubled by guidance, and those of a product that can be counted by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ivedit.config import load
from ivedit.training.flops import count_flops
from tests.backbone.tiny import tiny_backbone

SMALL = ("data.height=16", "data.width=16", "evaluation.frames=5", "editor.width=24", "train.batch_size=2")


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


def count(backbone, *settings, experiment="imvideoedit"):
    return count_flops(load(experiment, *SMALL, *settings), backbone)


def test_a_training_step_is_linear_in_its_pairs_and_accumulation(backbone):
    one = count(backbone)
    assert count(backbone, "train.batch_size=6", "train.accumulate=2")["training_step"] == 6 * one["training_step"]
    assert count(backbone, "train.batch_size=6")["sampling_step"] == one["sampling_step"]


def test_draws_share_their_pairs_source(backbone):
    one, four = (count(backbone, f"flow.draws_per_pair={n}")["training_step"] for n in (1, 4))
    assert one < four < 4 * one


def test_guidance_takes_two_branches_and_longer_clips_take_more(backbone):
    one = count(backbone)
    guided = count(backbone, "sampling.guidance=3")
    assert guided["sampling_step"] == 2 * one["sampling_step"] and guided["sampling_source"] == one["sampling_source"]
    longer = count(backbone, "evaluation.frames=9")
    assert longer["sampling_step"] > 1.4 * one["sampling_step"] and longer["training_step"] == one["training_step"]


def test_an_arm_without_the_gate_costs_less_and_the_counts_repeat(backbone):
    full, bare = count(backbone), count(backbone, experiment="ablation_no_gate")
    assert bare["training_step"] < full["training_step"] and bare["sampling_step"] < full["sampling_step"]
    assert full == count(backbone)


def test_a_step_of_sampling_holds_the_frozen_backbones_own(backbone):
    from ivedit.data.text import TextStates

    text = TextStates(torch.zeros(1, backbone.spec.text_length, backbone.spec.text_dim),
                      torch.ones(1, backbone.spec.text_length, dtype=torch.bool))  # fmt: skip
    spec = backbone.spec
    size = (1, spec.latent_channels, 1 + 4 // spec.time_factor, 16 // spec.space_factor, 16 // spec.space_factor)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone.velocity(torch.randn(size), torch.tensor([0.5]), text)
    frozen = counter.get_total_flops()
    assert frozen < count(backbone)["sampling_step"] < 6 * frozen
