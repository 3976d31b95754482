"""Padding is never attended to, whether a bias says so or the variable-length kernel is told."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ivedit.editor.padded import attend, key_mask, sequence_starts, with_bias


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), before=st.integers(0, 3), queries=st.integers(1, 4))
def test_the_sequences_are_the_samples_with_their_real_keys(lengths, before, queries):
    torch.manual_seed(sum(lengths))
    samples, longest = len(lengths), 5
    real = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    mask = key_mask(real, torch.float32, before=before, queries=queries)
    keys = before + longest
    query, key, value = (torch.randn(samples, 2, n, 8) for n in (queries, keys, keys))
    expected = attend(query, key, value, mask)
    starts, query_starts = (
        t.tolist() for t in sequence_starts(before + real.sum(1, dtype=torch.int32), keys, queries)
    )
    assert starts[-1] == samples * keys and query_starts[-1] == samples * queries  # no row is left out
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))
    found = []
    for i in range(2 * samples):
        asked, read = slice(*query_starts[i : i + 2]), slice(*starts[i : i + 2])
        if asked.start < asked.stop:
            part = (t.transpose(0, 1) for t in (q[asked], k[read], v[read]))
            found.append(F.scaled_dot_product_attention(*part).transpose(0, 1))
    torch.testing.assert_close(torch.cat(found), expected.transpose(1, 2).flatten(0, 1), rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing_whatever_it_holds():
    torch.manual_seed(0)
    real = torch.tensor([[True, True, False], [True, False, False]])
    mask = key_mask(real.repeat(1, 1), torch.float32, before=2, queries=4, copies=2)
    query, key, value = torch.randn(4, 1, 4, 8), torch.randn(4, 1, 5, 8), torch.randn(4, 1, 5, 8)
    hidden = mask.bias[:, 0, 0].isinf()
    assert hidden.tolist() == [[False] * 4 + [True]] * 2 + [[False] * 3 + [True] * 2] * 2
    expected = attend(query, key, value, mask)
    key[:, 0][hidden], value[:, 0][hidden] = 50.0, -7.0
    assert torch.equal(attend(query, key, value, mask), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [24, 64, 128])
def test_the_variable_length_kernel_equals_the_bias_in_values_and_gradients(head_dim):
    torch.manual_seed(0)
    real = torch.arange(64, device="cuda")[None] < torch.tensor([[1], [7], [64]], device="cuda")
    shape = (3, 3, 200, head_dim)
    inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)]
    inputs += [torch.randn(3, 3, 264, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in "kv"]
    found = {}
    for bias in (False, True):
        with with_bias() if bias else torch.enable_grad():
            mask = key_mask(real, torch.bfloat16, before=200, queries=200)
        assert (mask.starts is None) == bias
        out = attend(*inputs, mask)
        found[bias] = [out, *torch.autograd.grad(out, inputs, torch.ones_like(out).cumsum(2) / 200)]
    for ours, reference in zip(found[False], found[True], strict=True):
        assert torch.isfinite(ours).all()
        assert (ours - reference).float().norm() < 0.01 * reference.float().norm()
