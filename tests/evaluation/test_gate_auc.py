"""The gate's AUC against the true mask."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ivedit.evaluation.metrics import GateAUC, Reference, token_coverage, weighted_auc


def pixel_auc(scores, inside):
    """Mann-Whitney over all pairs of pixels, ties counting half."""
    positive, negative = scores[inside], scores[~inside]
    wins = (positive[:, None] > negative[None]).mean() + 0.5 * (positive[:, None] == negative[None]).mean()
    return float(wins)


@given(seed=st.integers(0, 10_000), levels=st.integers(2, 20))
@settings(max_examples=25, deadline=None)
def test_it_equals_the_pixel_wise_auc_of_the_upsampled_gate(seed, levels):
    rng = np.random.default_rng(seed)
    gate = rng.integers(0, levels, size=(4, 4)).astype(np.float32)  # many ties
    mask = rng.random((16, 16)) < rng.uniform(0.1, 0.9)
    if mask.all() or not mask.any():
        return
    coverage = token_coverage(torch.from_numpy(mask)[None, None, None], 1, 4, 4)[0, 0]
    found = weighted_auc(torch.from_numpy(gate).flatten(), coverage)
    assert found.item() == pytest.approx(pixel_auc(np.kron(gate, np.ones((4, 4))), mask), abs=1e-6)


def test_coverage_maps_pixel_frames_to_latent_frames():
    mask = torch.zeros(1, 9, 1, 8, 8)
    mask[:, 0, :, :4, :4] = 1  # the first frame stands alone
    mask[:, 7, :, 4:, 4:] = 1  # one of the four frames of the last latent
    found = token_coverage(mask, 3, 2, 2)
    assert found.tolist() == [[[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0.25]]]
    with pytest.raises(ValueError, match="9 pixel frames"):
        token_coverage(mask, 4, 2, 2)
    with pytest.raises(ValueError, match="one latent frame"):
        token_coverage(mask, 1, 2, 2)


def test_a_gate_that_is_the_mask_scores_1_its_opposite_0_and_a_blind_one_a_half():
    mask = torch.zeros(2, 5, 1, 16, 16, dtype=torch.bool)
    mask[..., :8, :8] = True
    mask[1] = False  # nothing to find: no value
    reference = Reference(torch.zeros(2, 5, 3, 16, 16), torch.zeros(2, 5, 3, 16, 16), mask)
    coverage = token_coverage(mask, 2, 4, 4)
    maps = torch.stack((coverage, 1 - coverage, torch.full_like(coverage, 0.7)), dim=1)[:, :, None]
    metric = GateAUC((4, 4))
    metric.update(maps, reference)
    assert metric.compute().flatten().tolist() == [1, 0, 0.5]
    assert metric.per_clip_mean()[0] == 0.5 and metric.per_clip_mean()[1].isnan()
    with pytest.raises(ValueError, match="gate maps"):
        metric.update(maps[..., :3], reference)
