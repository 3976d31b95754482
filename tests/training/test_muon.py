"""Muon over many matrices at once: the same steps as PyTorch's own, one matrix at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ivedit.training.muon import MuonAdamW, muon_flops, orthogonalise
from ivedit.training.optim import build_adamw, clip_and_guard

SHAPES = [(8, 8), (8, 8), (8, 8), (6, 16), (6, 16), (16, 6)]
SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99, "momentum": 0.9}


def parameters(seed: int = 0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape)) for shape in [*SHAPES, (5,), (1, 7)]]


def give_gradients(every: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in every:
        p.grad = torch.randn(p.shape, generator=generator)


def test_equals_pytorchs_muon_and_adamw_over_several_steps():
    ours, theirs = parameters(), parameters()
    optimizer = MuonAdamW(ours, **SETTINGS)
    matrices, rest = theirs[: len(SHAPES)], theirs[len(SHAPES) :]
    muon = torch.optim.Muon(
        matrices, lr=0.02, weight_decay=0.1, momentum=0.9, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    adamw = build_adamw(rest, lr=0.02, weight_decay=0.0, beta1=0.9, beta2=0.99)
    for step in range(4):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step()
        muon.step()
        adamw.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)  # the iteration runs in bfloat16


@pytest.mark.parametrize("shape", [(4, 4), (4, 9), (9, 4)])
def test_orthogonalised_matrices_have_singular_values_near_one_and_keep_their_directions(shape):
    torch.manual_seed(1)
    matrices = torch.randn(3, *shape)
    found = orthogonalise(matrices).float()
    singular = torch.linalg.svdvals(found)
    assert (singular > 0.6).all() and (singular < 1.3).all()
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    nearest = u @ vh
    assert (torch.nn.functional.cosine_similarity(found.flatten(1), nearest.flatten(1)) > 0.95).all()


def test_its_state_continues_after_saving_and_loading():
    whole, first = parameters(), parameters()
    uninterrupted, before = MuonAdamW(whole, **SETTINGS), MuonAdamW(first, **SETTINGS)
    for step in range(2):
        for every, optimizer in ((whole, uninterrupted), (first, before)):
            give_gradients(every, step)
            optimizer.step()
    second = [nn.Parameter(p.detach().clone()) for p in first]
    after = MuonAdamW(second, **SETTINGS)
    after.load_state_dict(before.state_dict())
    for every, optimizer in ((whole, uninterrupted), (second, after)):
        give_gradients(every, 2)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_costs_one_step_and_nothing_else(bad):
    every = parameters()
    optimizer = MuonAdamW(every, **SETTINGS)

    def step(seed: int, value: float | None = None) -> None:
        give_gradients(every, seed)
        if value is not None:
            every[-1].grad.view(-1)[0] = value
        clip_and_guard(optimizer, [p.grad for p in every], 1.0)
        optimizer.step()

    step(0)
    before = [p.detach().clone() for p in every]
    momentum = optimizer.state[every[0]]["momentum_buffer"].clone()
    step(1, bad)
    assert all(torch.equal(a, b) for a, b in zip(before, every, strict=True))
    assert torch.equal(momentum, optimizer.state[every[0]]["momentum_buffer"])
    step(2)
    assert all(torch.isfinite(p).all() for p in every) and not torch.equal(before[0], every[0])


def test_vectors_and_single_rows_are_left_to_adamw_without_decay():
    every = parameters()
    muon, adamw = MuonAdamW(every, **SETTINGS).param_groups
    assert [p.shape for p in adamw["params"]] == [(5,), (1, 7)] and adamw["weight_decay"] == 0
    assert len(muon["params"]) == len(SHAPES) and muon["weight_decay"] == 0.1


def test_matrices_in_several_goes_move_as_they_do_in_one(monkeypatch: pytest.MonkeyPatch):
    def after(at_once: int) -> list[torch.Tensor]:
        monkeypatch.setattr("ivedit.training.muon._AT_ONCE", at_once)
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(6, 10)) for _ in range(5)] + [nn.Parameter(torch.randn(4))]
        optimizer = MuonAdamW(weights, lr=0.1, weight_decay=0.1, beta1=0.9, beta2=0.99, momentum=0.95)
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn_like(weight)
            optimizer.step()
        return [weight.detach().clone() for weight in weights]

    whole = after(10**9)
    for at_once in (1, 130):  # each by itself; two, two and one
        for one, other in zip(after(at_once), whole, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-3)  # bfloat16 rounds other batches otherwise


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8)])
def test_the_counted_operations_are_those_that_are_done(shape: tuple[int, int]):
    with FlopCounterMode(display=False) as counter:
        orthogonalise(torch.randn(3, *shape))
    assert muon_flops([shape] * 3 + [(5,), (1, 7)]) == counter.get_total_flops()
