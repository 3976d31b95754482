"""The path, the sigma distributions and the loss against their closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ivedit.flow import (
    change_weight,
    interpolate,
    predict_x0,
    sample_sigma,
    shift_sigma,
    unshift_sigma,
    velocity_loss,
    velocity_target,
)

shifts = st.floats(0.2, 20)
unit = st.floats(0.001, 1)


@given(unit)
def test_shift_one_is_the_identity(r):
    assert shift_sigma(torch.tensor(r, dtype=torch.float64), 1.0).item() == pytest.approx(r)


@given(unit, shifts)
def test_unshift_undoes_shift(r, k):
    there = shift_sigma(torch.tensor(r, dtype=torch.float64), k)
    assert unshift_sigma(there, k).item() == pytest.approx(r, rel=1e-9)


@given(unit, shifts, shifts)
def test_shifts_compose_by_multiplication(r, a, b):
    x = torch.tensor(r, dtype=torch.float64)
    assert shift_sigma(shift_sigma(x, a), b).item() == pytest.approx(shift_sigma(x, a * b).item(), rel=1e-9)


def test_shift_keeps_the_ends_and_rises():
    r = torch.linspace(0, 1, 101)
    sigma = shift_sigma(r, 5.0)
    assert sigma[0] == 0 and sigma[-1] == 1
    assert (sigma.diff() > 0).all()
    assert sigma[50].item() == pytest.approx(5 * 0.5 / 3)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_a_shift_not_above_zero_is_refused(bad):
    with pytest.raises(ValueError, match="above 0"):
        shift_sigma(torch.ones(1), bad)


def test_uniform_timesteps_are_the_shifted_numbers():
    r = torch.rand(64)
    assert torch.equal(sample_sigma("uniform", r, shift=3.0), shift_sigma(r, 3.0))


@pytest.mark.parametrize(("mean", "std", "shift"), [(0.0, 1.0, 1.0), (0.5, 0.7, 1.0), (-0.3, 1.4, 3.0)])
def test_logit_normal_sigmas_have_a_normal_logit_moved_by_log_shift(mean, std, shift):
    # sigma = k r / (1 + (k - 1) r) means logit(sigma) = logit(r) + log k.
    n = 200_000
    r = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    logit = torch.logit(sample_sigma("logit_normal", r, shift=shift, mean=mean, std=std))
    assert logit.mean().item() == pytest.approx(mean + math.log(shift), abs=1e-3)
    assert logit.std().item() == pytest.approx(std, rel=1e-3)
    assert logit.quantile(0.75).item() == pytest.approx(mean + math.log(shift) + 0.67449 * std, abs=1e-3)


@pytest.mark.parametrize("kind", ["uniform", "logit_normal"])
def test_sigmas_lie_in_the_half_open_unit_interval(kind):
    r = torch.tensor([1e-7, 0.3, 1.0])
    sigma = sample_sigma(kind, r, shift=3.0)
    assert (sigma > 0).all() and (sigma <= 1).all()


def test_an_unknown_distribution_is_refused_by_name():
    with pytest.raises(ValueError, match="'cosine'"):
        sample_sigma("cosine", torch.ones(1), shift=1.0)
    with pytest.raises(ValueError, match="standard deviation"):
        sample_sigma("logit_normal", torch.ones(1), shift=1.0, std=0.0)


def test_the_path_starts_at_data_ends_at_noise_and_has_the_target_as_velocity():
    x0, noise = torch.randn(2, 3, 2, 1, 4, 4, dtype=torch.float64)
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    assert torch.equal(interpolate(x0, noise, zero), x0)
    assert torch.equal(interpolate(x0, noise, one), noise)
    sigma = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    h = 1e-4
    slope = (interpolate(x0, noise, sigma + h) - interpolate(x0, noise, sigma - h)) / (2 * h)
    torch.testing.assert_close(slope, velocity_target(x0, noise))
    torch.testing.assert_close(predict_x0(interpolate(x0, noise, sigma), noise - x0, sigma), x0)


def test_the_loss_is_the_mean_square_of_each_sample_in_float32():
    v = torch.randn(4, 3, 2, 5)
    assert torch.equal(velocity_loss(v, v), torch.zeros(4))
    offset = torch.tensor([0.0, 1.0, 2.0, 3.0]).reshape(4, 1, 1, 1)
    squares = torch.tensor([0.0, 1.0, 4.0, 9.0])
    torch.testing.assert_close(velocity_loss(v + offset, v), squares, atol=1e-5, rtol=1e-5)
    assert velocity_loss(v.bfloat16(), v.bfloat16()).dtype == torch.float32


def test_places_that_change_hold_the_asked_share_of_the_loss_however_few_they_are():
    source = torch.zeros(3, 4, 1, 8, 8)
    target = source.clone()
    target[0, :, :, :2, :3] = 5.0  # 6 of 64 places
    target[1, :, :, :, :] = 5.0  # all of them
    weight = change_weight(source, target, 0.5)  # the third pair does not change
    assert weight.shape == (3, 1, 1, 8, 8)
    torch.testing.assert_close(weight.mean(dim=(1, 2, 3, 4)), torch.ones(3))
    changed = weight[0, :, :, :2, :3].sum() / weight[0].sum()
    torch.testing.assert_close(changed, torch.tensor(0.5 + 0.5 * 6 / 64), atol=2e-3, rtol=0)
    torch.testing.assert_close(weight[1:], torch.ones(2, 1, 1, 8, 8))
    torch.testing.assert_close(change_weight(source, target, 0.0), torch.ones(3, 1, 1, 8, 8))


def test_the_weight_of_a_tiny_change_is_bounded():
    source, target = torch.zeros(1, 4, 1, 32, 32), torch.zeros(1, 4, 1, 32, 32)
    target[0, :, 0, 5, 5] = 9.0
    weight = change_weight(source, target, 1.0)
    assert weight[0, 0, 0, 5, 5] / weight.mean() < 32 * 32 + 1 and torch.isfinite(weight).all()
    mild = change_weight(source, target, 0.5)
    assert 1 + 8 < mild.max() / mild.min() < 1 + 17


def test_a_weighted_loss_is_the_weighted_mean():
    torch.manual_seed(0)
    v_hat, v = torch.randn(2, 4, 1, 3, 3), torch.randn(2, 4, 1, 3, 3)
    weight = torch.rand(2, 1, 1, 3, 3)
    expected = [((v_hat[i] - v[i]).square() * weight[i]).mean() for i in range(2)]
    torch.testing.assert_close(velocity_loss(v_hat, v, weight), torch.stack(expected))
