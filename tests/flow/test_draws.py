"""Random numbers are functions of where they are used, and of nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ivedit.flow import clip_seeds, draw_noise, even_draws, mix_seed, stratified, training_draws


def test_noise_of_a_sample_is_independent_of_its_neighbours():
    shape = (4, 2, 3, 3)
    together = draw_noise(shape, [5, 6, 7])
    assert together.shape == (3, *shape)
    others = draw_noise(shape, torch.tensor([7, 1, 5]))
    assert torch.equal(others[0], together[2]) and torch.equal(others[2], together[0])
    assert not torch.equal(together[0], together[1])


def test_noise_is_standard_normal():
    noise = draw_noise((64, 64), [mix_seed(3, i) for i in range(32)])
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.std().item() - 1) < 0.01


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draw_noise((8,), [1, 2])
    training_draws(0, 1, 2, 0, 8)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(1, 200), st.integers(0, 2**62))
@settings(max_examples=30)
def test_stratified_numbers_put_one_in_each_stratum(n, seed):
    r = stratified(n, seed)
    assert (r > 0).all() and (r <= 1).all()
    edges = torch.arange(n) / n
    assert (r.sort().values >= edges - 1e-6).all() and (r.sort().values <= edges + 1 / n + 1e-6).all()


@given(st.lists(st.integers(-5, 2**40), min_size=1, max_size=4))
@settings(max_examples=50)
def test_seeds_are_in_range_and_change_with_every_part(parts):
    seed = mix_seed(*parts)
    assert 0 <= seed < 2**63
    for i in range(len(parts)):
        assert mix_seed(*[p + (j == i) for j, p in enumerate(parts)]) != seed


def test_order_of_the_parts_matters():
    assert mix_seed(1, 2) != mix_seed(2, 1)


def test_training_draws_are_a_pure_function_that_differs_by_seed_step_and_rank():
    base = training_draws(0, 10, 0, 0, 8)
    again = training_draws(0, 10, 0, 0, 8)
    assert torch.equal(base[0], again[0]) and base[1] == again[1]
    seen = {tuple(base[1])}
    for arguments in [(1, 10, 0), (0, 11, 0), (0, 10, 1)]:
        r, seeds = training_draws(*arguments, 0, 8)
        assert not torch.equal(r, base[0])
        assert tuple(seeds) not in seen
        seen.add(tuple(seeds))


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_micro_batches_draw_what_the_whole_batch_draws(micros, batch, draws):
    whole_r, whole_seeds = training_draws(7, 3, 0, 0, micros * batch, draws)
    parts = [training_draws(7, 3, 0, micro, batch, draws, micros=micros) for micro in range(micros)]
    assert torch.equal(torch.cat([r for r, _ in parts]), whole_r)
    assert [s for _, seeds in parts for s in seeds] == whole_seeds


def test_a_micro_batch_outside_the_step_is_refused():
    with pytest.raises(ValueError, match="micro-batch 2"):
        training_draws(0, 0, 0, 2, 8, micros=2)


@given(st.integers(0, 1000), st.integers(20, 200))
@settings(max_examples=30, deadline=None)
def test_validation_draws_belong_to_samples_and_cover_the_interval(first, count):
    r, seeds = even_draws(0, range(first, first + count))
    again, seeds_again = even_draws(0, range(first + 5, first + 9))
    assert torch.equal(r[5:9], again) and seeds[5:9] == seeds_again
    assert (r > 0).all() and (r < 1).all()
    gaps = torch.cat([torch.zeros(1), r.sort().values, torch.ones(1)]).diff()
    assert gaps.max() < 4 / count


def test_clip_seeds_belong_to_clips():
    assert clip_seeds(3, range(4))[2:] == clip_seeds(3, [2, 3])
    assert clip_seeds(3, [0]) != clip_seeds(4, [0])


def test_every_noise_seed_of_a_step_is_its_own():
    seeds = [s for micro in range(4) for s in training_draws(0, 0, 0, micro, 16, 3, micros=4)[1]]
    assert len(set(seeds)) == len(seeds) == 4 * 16 * 3


def test_the_draws_of_a_batch_cover_the_interval_evenly():
    r, _ = training_draws(0, 0, 0, 0, 16, 4)
    counts = torch.histc(r, bins=16, min=0, max=1)
    assert torch.equal(counts, torch.full((16,), 4.0))
