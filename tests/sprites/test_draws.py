"""Draws: the published hash, uniform and independent of one another."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ivedit.sprites import draws

MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """The reference implementation: one step of splitmix64 from `state`."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


@given(st.integers(-(2**63), 2**63 - 1))
def test_forking_by_zero_is_a_step_of_splitmix64(state):
    found = int(draws.fork(torch.tensor([state]), 0))
    assert found & MASK == splitmix64(state & MASK)
    assert found == int(draws.fork(torch.tensor([state]), torch.tensor([0])))


def test_known_value_of_splitmix64():
    assert int(draws.fork(torch.tensor([0]), 0)) & MASK == 0xE220A8397B1DCDAF


def test_draws_are_uniform_and_uncorrelated():
    key = draws.stream(3, torch.arange(100_000), "test")
    one, other = draws.uniform(key, "one"), draws.uniform(key, "other")
    assert one.min() >= 0 and one.max() < 1
    assert (torch.histc(one, 20, 0, 1) / 5000 - 1).abs().max() < 0.06
    assert torch.corrcoef(torch.stack((one, other, one.roll(1))))[0, 1:].abs().max() < 0.015


def test_integers_cover_their_range_evenly():
    key = draws.stream(3, torch.arange(70_000), "test")
    counts = draws.integers(key, "die", 7).bincount(minlength=7)
    assert len(counts) == 7 and (counts / 10_000 - 1).abs().max() < 0.05
    assert abs(draws.chance(key, "coin", 0.3).float().mean() - 0.3) < 0.01
