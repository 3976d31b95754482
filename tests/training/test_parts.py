"""The pieces of training that have a closed form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ivedit.training.bins import BINS, BinMeans, bin_of
from ivedit.training.captured import StaticStep
from ivedit.training.ema import Ema, ema_decay
from ivedit.training.loader import RunLoader
from ivedit.training.optim import build_adamw, clip_and_guard, lr_factor, warmup_cosine


def test_the_average_follows_its_closed_form():
    weight = nn.Parameter(torch.zeros(3))
    ema = Ema([weight], decay=0.5)
    expected = torch.zeros(3)
    for n, value in enumerate([1.0, -2.0, 5.0, 3.0]):
        with torch.no_grad():
            weight.fill_(value)
        ema.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
        torch.testing.assert_close(ema.average[0], expected)


def test_the_decay_warms_up_to_its_setting():
    assert ema_decay(0.999, 0) == 0.1
    assert ema_decay(0.999, 90) == pytest.approx(0.91)
    assert ema_decay(0.999, 10**6) == 0.999


def test_applying_the_average_is_undone_in_place_and_can_be_made_permanent():
    weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    address = weight.data_ptr()
    ema = Ema([weight], decay=0.9)
    ema.average[0].fill_(7.0)
    assert ema.average[0].dtype == torch.float32
    with ema.applied():
        assert (weight == 7).all() and weight.data_ptr() == address
    assert (weight == 1).all()
    with pytest.raises(KeyError), ema.applied():
        raise KeyError
    assert (weight == 1).all()
    ema.copy_to_parameters()
    assert (weight == 7).all() and weight.data_ptr() == address


def test_a_decay_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"1\.5"):
        Ema([], 1.5)


def test_the_learning_rate_warms_up_linearly_and_decays_as_a_cosine():
    def factor(step):
        return lr_factor(step, warmup=4, total=21, final=0.1)

    assert [factor(i) for i in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(4) == pytest.approx(1.0)
    assert factor(12) == pytest.approx(0.1 + 0.9 * 0.5)
    assert factor(20) == pytest.approx(0.1) and factor(100) == pytest.approx(0.1)
    quarter = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))
    assert factor(8) == pytest.approx(quarter)


def test_a_warm_up_longer_than_the_run_is_cut():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_cosine(optimizer, warmup=50, total=20, final=0.05)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == 0.5 and max(rates) == 1.0 and rates[-1] == pytest.approx(0.05)


def test_biases_and_norms_do_not_decay():
    layer, norm = nn.Linear(3, 2), nn.LayerNorm(3)
    optimizer = build_adamw([*layer.parameters(), *norm.parameters()], lr=1, weight_decay=0.3, beta1=0.9, beta2=0.99)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay[id(layer.weight)] == 0.3
    assert decay[id(layer.bias)] == decay[id(norm.weight)] == decay[id(norm.bias)] == 0.0


def test_clipping_scales_all_gradients_to_the_asked_norm():
    a, b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(2, 2))
    a.grad, b.grad = torch.full((4,), 3.0), torch.full((2, 2), 4.0)
    optimizer = build_adamw([a, b], lr=0.1, weight_decay=0.0, beta1=0.9, beta2=0.99)
    assert clip_and_guard(optimizer, [a.grad, b.grad], 0.0).item() == pytest.approx(10.0)
    assert a.grad[0] == 3
    assert clip_and_guard(optimizer, [a.grad, b.grad], 1.0).item() == pytest.approx(10.0)
    torch.testing.assert_close(a.grad, torch.full((4,), 0.3))
    clip_and_guard(optimizer, [a.grad, b.grad], 5.0)
    torch.testing.assert_close(b.grad, torch.full((2, 2), 0.4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_costs_one_step_and_nothing_else(bad):
    weight = nn.Parameter(torch.ones(3))
    optimizer = build_adamw([weight], lr=0.1, weight_decay=0.1, beta1=0.9, beta2=0.99)

    def step(gradient):
        weight.grad = gradient
        clip_and_guard(optimizer, [weight.grad], 1.0)
        optimizer.step()

    step(torch.tensor([1.0, 2.0, 3.0]))
    before, state = weight.detach().clone(), {k: v.clone() for k, v in optimizer.state[weight].items()}
    step(torch.tensor([1.0, bad, 3.0]))
    assert torch.equal(weight, before)
    assert all(torch.equal(state[k], optimizer.state[weight][k]) for k in state)
    step(torch.tensor([1.0, 2.0, 3.0]))
    assert not torch.equal(weight, before) and torch.isfinite(weight).all()


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_every_sigma_has_the_bin_that_holds_it(sigmas):
    for sigma, place in zip(sigmas, bin_of(torch.tensor(sigmas)).tolist(), strict=True):
        assert place / BINS - 1e-5 <= sigma <= (place + 1) / BINS + 1e-5


def test_bin_edges_belong_to_the_bin_below():
    assert bin_of(torch.tensor([0.0, 0.1, 0.1001, 0.5, 1.0])).tolist() == [0, 0, 1, 4, 9]


def test_bins_account_for_every_loss_and_start_anew():
    bins = BinMeans()
    bins.add(torch.tensor([0.05, 0.95]), torch.tensor([1.0, 5.0]))
    bins.add(torch.tensor([0.99, 0.5]), torch.tensor([7.0, float("nan")]))
    assert bins.pop() == {
        "loss": pytest.approx(13 / 3), "loss_sigma/0.0-0.1": 1.0, "loss_sigma/0.9-1.0": 6.0, "not_finite": 1.0,
    }
    assert bins.pop() == {}


def test_a_run_loader_begins_where_the_run_stands():
    loader = RunLoader(7, lambda start: range(start, 7))
    assert len(loader) == 7 and list(loader) == list(range(7))
    loader.position = lambda: 4
    assert list(loader) == [4, 5, 6] and len(loader) == 7


def quadratic(layer):
    return lambda tensors: (layer(tensors["x"]) - tensors["y"]).square().mean(dim=1)


def test_a_static_step_gives_the_losses_and_gradients_of_an_eager_one():
    torch.manual_seed(0)
    layer, unused = nn.Linear(4, 2), nn.Parameter(torch.zeros(3))
    step = StaticStep(quadratic(layer), [*layer.parameters(), unused], torch.device("cpu"), graph=False)
    addresses = None
    for _ in range(3):
        batch = {"x": torch.randn(5, 4), "y": torch.randn(5, 2)}
        losses, gradients = step(batch)
        expected = quadratic(layer)(batch)
        wanted = torch.autograd.grad(expected.mean(), list(layer.parameters()))
        torch.testing.assert_close(losses, expected.detach())
        torch.testing.assert_close(gradients[:2], list(wanted))
        assert (gradients[2] == 0).all()
        here = [losses.data_ptr(), *[g.data_ptr() for g in gradients]]
        assert addresses in (None, here)  # the optimiser may keep them
        addresses = here
    assert not losses.requires_grad


def test_a_static_step_refuses_other_shapes_and_names():
    layer = nn.Linear(4, 2)
    step = StaticStep(quadratic(layer), list(layer.parameters()), torch.device("cpu"), graph=False)
    step({"x": torch.zeros(5, 4), "y": torch.zeros(5, 2)})
    with pytest.raises(ValueError, match=r"x is \(3, 4\)"):
        step({"x": torch.zeros(3, 4), "y": torch.zeros(5, 2)})
    with pytest.raises(ValueError, match="built for"):
        step({"x": torch.zeros(5, 4)})


@pytest.mark.gpu
def test_a_captured_step_gives_the_losses_and_gradients_of_an_eager_one():
    torch.manual_seed(0)
    device = torch.device("cuda")
    layer = nn.Linear(4, 2).to(device)
    step = StaticStep(quadratic(layer), list(layer.parameters()), device, graph=True)
    for _ in range(3):
        batch = {"x": torch.randn(5, 4), "y": torch.randn(5, 2)}
        losses, gradients = step(batch)
        expected = quadratic(layer)({k: v.to(device) for k, v in batch.items()})
        torch.testing.assert_close(losses, expected.detach())
        torch.testing.assert_close(gradients, list(torch.autograd.grad(expected.mean(), list(layer.parameters()))))
