import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivedit.data import order

seeds = st.integers(0, 2**63 - 1)


@given(seeds, st.integers(0, 50), st.integers(1, 200))
def test_an_epochs_order_is_a_permutation_and_a_function_of_its_arguments(seed, epoch, pairs):
    first = order.epoch_permutation(seed, epoch, pairs)
    assert sorted(first) == list(range(pairs))
    assert np.array_equal(first, order.epoch_permutation(seed, epoch, pairs))


def test_epochs_and_seeds_have_different_orders():
    orders = {tuple(order.epoch_permutation(seed, epoch, 50)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def _one(pairs):
    return [np.arange(pairs, dtype=np.int64)]


@given(seeds, st.integers(0, 9), st.integers(1, 120), st.integers(1, 8), st.integers(1, 5))
def test_ranks_share_an_epoch_without_overlap_and_equally(seed, epoch, pairs, batch, world):
    parts = [order.epoch_batches(seed, epoch, _one(pairs), batch, rank, world) for rank in range(world)]
    assert {part.shape for part in parts} == {(pairs // (batch * world), batch)}
    seen = np.concatenate([part.ravel() for part in parts])
    assert len(set(seen)) == len(seen)
    assert len(seen) > pairs - batch * world
    # Together they see, batch by batch, what one rank with larger batches sees.
    together = np.concatenate(parts, axis=1)
    assert np.array_equal(together, order.epoch_batches(seed, epoch, _one(pairs), batch * world, 0, 1))
    whole = order.epoch_permutation(seed, epoch, pairs)
    assert np.array_equal(together.ravel(), whole[: together.size])


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4))
def test_validation_is_in_order_and_divided_equally(pairs, batch, world):
    parts = [order.sequential_batches(pairs, batch, rank, world) for rank in range(world)]
    flat = [np.concatenate(part).tolist() if part else [] for part in parts]
    assert {len(part) for part in flat} == {pairs // world}
    assert sorted(place for part in flat for place in part) == list(range(pairs // world * world))
    assert all(part == sorted(part) for part in flat)


@given(seeds, st.integers(0, 9), st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_a_choice_about_a_pair_does_not_depend_on_its_batch(seed, epoch, indices):
    index = np.array(indices, dtype=np.int64)
    together = order.uniform(seed, "x", epoch, index)
    alone = [order.uniform(seed, "x", epoch, index[i : i + 1])[0] for i in range(len(index))]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < 1)).all()


def test_draws_are_uniform_and_independent_between_labels():
    index = np.arange(20000)
    a, b = order.uniform(1, "a", 0, index), order.uniform(1, "b", 0, index)
    assert abs(a.mean() - 0.5) < 0.01 and abs(np.corrcoef(a, b)[0, 1]) < 0.02
    counts = np.bincount(order.choose(3, "c", 1, index, np.full(20000, 4)), minlength=4)
    assert (abs(counts - 5000) < 300).all()


@given(seeds, st.lists(st.integers(0, 4), min_size=2, max_size=60))
def test_every_pair_is_given_another_pairs_different_text(seed, texts):
    text = np.array(texts, dtype=np.int64)
    permutation = order.epoch_permutation(seed, 0, len(text))
    possible = all(any(other not in (mine, 0) for other in texts) for mine in texts)
    if not possible:
        with pytest.raises(ValueError, match="no pair"):
            order.other_text(permutation, text, 0)
        return
    partner = order.other_text(permutation, text, 0)
    assert (text[partner] != text).all() and (text[partner] != 0).all()
