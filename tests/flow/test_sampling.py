"""The solvers against flows whose solution is known."""

import pytest
import torch

from ivedit.flow import build_scheduler, denoise, draw_noise, guided, shift_sigma

WAN = {"num_train_timesteps": 1000, "solver_order": 2, "flow_shift": 3.0}
kinds = pytest.mark.parametrize("kind", ["euler", "unipc"])


def gaussian_velocity(std):
    """E[noise - x0 | x] for x0 ~ N(0, std^2); the flow maps x(1) to std * x(1)."""

    def velocity(x, sigma):
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        return x * (s - (1 - s) * std**2) / ((1 - s) ** 2 * std**2 + s**2)

    return velocity


@pytest.fixture
def noise():
    return draw_noise((2, 1, 4, 4), [1, 2, 3])


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_euler_is_exact_on_a_constant_field(noise, steps):
    constant = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0))
    out = denoise(lambda x, sigma: constant, noise, build_scheduler("euler", WAN, 3.0), steps)
    torch.testing.assert_close(out, noise - constant)


@kinds
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_the_straight_flow_to_one_point_is_exact_at_any_number_of_steps(noise, steps, kind):
    # All mass at x0: v(x, sigma) = (x - x0) / sigma, linear in x, with straight paths.
    x0 = torch.full_like(noise, 0.3)
    velocity = lambda x, sigma: (x - x0) / sigma.reshape(-1, 1, 1, 1, 1)  # noqa: E731
    out = denoise(velocity, noise, build_scheduler(kind, WAN, 3.0), steps)
    torch.testing.assert_close(out, x0, atol=2e-5, rtol=0)


@kinds
def test_a_gaussian_flow_scales_noise_by_its_standard_deviation(noise, kind):
    out = denoise(gaussian_velocity(0.5), noise, build_scheduler(kind, WAN, 1.0), 200)
    torch.testing.assert_close(out, 0.5 * noise, atol=0.02 if kind == "euler" else 2e-3, rtol=0)


def test_euler_and_unipc_agree(noise):
    euler = denoise(gaussian_velocity(0.7), noise, build_scheduler("euler", WAN, 3.0), 300)
    unipc = denoise(gaussian_velocity(0.7), noise, build_scheduler("unipc", WAN, 3.0), 50)
    torch.testing.assert_close(euler, unipc, atol=0.03, rtol=0)


def test_euler_converges_at_first_order(noise):
    errors = [
        (denoise(gaussian_velocity(0.5), noise, build_scheduler("euler", WAN, 1.0), n) - noise / 2)
        .abs()
        .max()
        for n in (40, 80)
    ]
    assert 1.7 < (errors[0] / errors[1]).item() < 2.3


@kinds
def test_the_field_is_asked_once_a_step_at_wans_shifted_sigmas(noise, kind):
    seen = []

    def velocity(x, sigma):
        assert sigma.shape == (len(noise),)
        seen.append(sigma[0].item())
        return torch.zeros_like(x)

    denoise(velocity, noise, build_scheduler(kind, WAN, 3.0), 6)
    expected = shift_sigma(torch.linspace(1, 1 / 1000, 7, dtype=torch.float64)[:-1], 3.0)
    torch.testing.assert_close(torch.tensor(seen, dtype=torch.float64), expected, atol=2e-6, rtol=0)


@kinds
def test_the_schedule_is_the_solvers_own_default(kind):
    from diffusers import UniPCMultistepScheduler

    plain = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    plain.set_timesteps(9)
    seen = []

    def velocity(x, sigma):
        seen.append(sigma[0].item())
        return x * 0

    denoise(velocity, torch.zeros(1, 2), build_scheduler(kind, WAN, 5.0), 9)
    torch.testing.assert_close(torch.tensor(seen), plain.sigmas[:-1], atol=2e-6, rtol=0)


@kinds
def test_a_scheduler_can_be_used_again(noise, kind):
    scheduler = build_scheduler(kind, WAN, 3.0)
    first = denoise(gaussian_velocity(0.5), noise, scheduler, 5)
    denoise(gaussian_velocity(0.9), noise, scheduler, 3)
    assert torch.equal(denoise(gaussian_velocity(0.5), noise, scheduler, 5), first)


@kinds
def test_a_sample_does_not_depend_on_its_neighbours(noise, kind):
    together = denoise(gaussian_velocity(0.5), noise, build_scheduler(kind, WAN, 3.0), 5)
    alone = denoise(gaussian_velocity(0.5), noise[1:2], build_scheduler(kind, WAN, 3.0), 5)
    torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=0)


@kinds
@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.0])
def test_a_start_from_noised_latents_returns_them_under_the_true_velocity(noise, kind, sigma):
    x0 = torch.full_like(noise, -0.4)
    seen = []

    def velocity(x, s):
        seen.append(s[0].item())
        return noise - x0

    out = denoise(velocity, noise, build_scheduler(kind, WAN, 3.0), 4, start=(x0, sigma))
    assert len(seen) == 4
    assert seen[0] == pytest.approx(sigma, abs=2e-6)
    torch.testing.assert_close(out, x0, atol=1e-4, rtol=0)


def test_impossible_requests_are_refused(noise):
    scheduler = build_scheduler("euler", WAN, 3.0)
    still = lambda x, sigma: x * 0  # noqa: E731
    with pytest.raises(ValueError, match="at least 1 step"):
        denoise(still, noise, scheduler, 0)
    with pytest.raises(ValueError, match="must lie in"):
        denoise(still, noise, scheduler, 2, start=(noise, 1.2))
    with pytest.raises(ValueError, match=r"must be above 0\.00299"):
        denoise(still, noise, scheduler, 2, start=(noise, 0.001))
    with pytest.raises(ValueError, match="'heun'"):
        build_scheduler("heun", WAN, 3.0)
    with pytest.raises(ValueError, match="above 0"):
        build_scheduler("euler", WAN, 0.0)


def test_progress_sees_every_step(noise):
    seen = []

    def progress(numbers):
        for i in numbers:
            seen.append(i)
            yield i

    denoise(gaussian_velocity(1.0), noise, build_scheduler("euler", WAN, 3.0), 3, progress=progress)
    assert seen == [0, 1, 2]


def test_guidance_one_is_the_positive_branch_and_zero_the_negative():
    pos, neg = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(guided(pos, neg, 1.0), pos)
    assert torch.equal(guided(pos, neg, 0.0), neg)
    assert torch.equal(guided(pos, pos, 7.0), pos)
    torch.testing.assert_close(guided(pos, neg, 3.0) - guided(pos, neg, 2.0), pos - neg)
