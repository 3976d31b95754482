"""The four losses: they fall, reach every weight that they should, and depend on (seed, step) alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ivedit.pretrain.dit import DitModule
from ivedit.pretrain.module import PretrainModule
from ivedit.pretrain.vae import latent_statistics, reconstruction_psnr
from ivedit.pretrain.whole_clip import encode_clip
from tests.pretrain.small import dit_module, gradients, reader_module, text_module, train, vae_module

MAKERS = {"text": text_module, "reader": reader_module, "vae": vae_module, "dit": dit_module}
Make = Callable[..., PretrainModule]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_loss_of_a_step_is_a_function_of_seed_and_step(make: Make):
    def value(seed: int, step: int, before: int = 0) -> float:
        module = make(seed)
        for earlier in range(before):  # what was computed before must not matter
            module.loss(earlier)
        torch.manual_seed(4)  # the VAE's reparametrisation noise; checkpoints keep its state
        return float(module.loss(step)[0].detach())

    assert value(0, 5) == value(0, 5, before=2)
    assert value(0, 5) != value(0, 6)
    assert value(0, 5) != value(1, 5)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_every_trained_weight_gets_a_finite_gradient(make: Make):
    found = gradients(make(), 1)
    assert found
    assert not [name for name, grad in found.items() if grad is None or not grad.isfinite().all()]
    reached = [name for name, grad in found.items() if grad is not None and grad.abs().max() > 0]
    assert len(reached) > 0.9 * len(found)  # fresh weights that are zero hide some from the first step


def test_single_images_leave_the_temporal_resampling_of_the_vae_alone():
    found = gradients(vae_module(image_steps=10), 1)
    without = {name for name, grad in found.items() if grad is None}
    assert without == {name for name in found if "time_conv" in name} != set()


@pytest.mark.parametrize(
    ("make", "steps", "factor"),
    [
        (lambda: text_module(lr=1e-2), range(6), 0.9),
        (lambda: reader_module(lr=5e-3), range(12), 0.5),
        (lambda: vae_module(image_steps=100, lr=2e-3), [0] * 10, 0.95),  # one batch: pictures differ a lot
        (lambda: vae_module(lr=2e-3), [0] * 4, 0.9),
        (lambda: dit_module(lr=5e-3), range(80), 0.95),
    ],
    ids=["text", "reader", "vae, images", "vae, clips", "dit"],
)
def test_a_few_steps_on_few_data_lower_the_loss(make: Make, steps: Sequence[int], factor: float):
    losses = train(make(), steps)
    part = max(2, len(losses) // 4)
    assert sum(losses[-part:]) / part < factor * sum(losses[:part]) / part


def test_learning_rate_warms_up_and_decays_to_a_fiftieth():
    module = dit_module(steps=50, warmup=10, lr=1e-3)
    made = module.configure_optimizers()
    rates = []
    for _ in range(51):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert rates[0] == pytest.approx(1e-4) and max(rates) == pytest.approx(1e-3) == rates[10]
    assert rates[50] == pytest.approx(2e-5)
    assert all(a < b for a, b in pairwise(rates[:10])) and all(a > b for a, b in pairwise(rates[10:]))


def test_a_pretraining_module_must_have_a_loss():
    with pytest.raises(TypeError, match="loss"):
        PretrainModule(torch.nn.Linear(1, 1), steps=1, lr=1.0, seed=0)  # type: ignore[abstract]


# -- the VAE's numbers ---------------------------------------------------------------------------------------------


def test_latent_statistics_are_those_of_all_latents_together():
    module = vae_module()
    mean, std = latent_statistics(module.model, module.clips, batch=3)
    latents = encode_clip(module.model, module.clips.transpose(1, 2).float() / 127.5 - 1)[0]
    torch.testing.assert_close(torch.tensor(mean), latents.mean((0, 2, 3, 4)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.tensor(std), latents.transpose(0, 1).flatten(1).std(1), atol=1e-5, rtol=1e-4)


def test_reconstruction_psnr_is_per_clip_and_frame_in_the_pixel_range():
    module = vae_module()
    module.model.eval()
    psnr = reconstruction_psnr(module.model, module.clips, batch=3)
    assert psnr.shape == (4, 17)
    pixels = module.clips[:1].transpose(1, 2).float() / 127.5 - 1
    with torch.no_grad():  # diffusers' own way, in pixels of [0, 1]
        again = module.model.decode(module.model.encode(pixels).latent_dist.mode()).sample
    mse = ((again - pixels) / 2).square().mean((1, 3, 4))
    torch.testing.assert_close(psnr[:1], -10 * mse.log10(), atol=1e-3, rtol=1e-4)


# -- the DiT's schedule --------------------------------------------------------------------------------------------


def shapes(module: DitModule, steps: int) -> list[tuple[int, int, int]]:
    """(batch, latent frames, text length) that the transformer is given in each step."""
    seen = []

    def look(_module: torch.nn.Module, arguments: tuple, keywords: dict) -> None:
        seen.append((arguments[0].shape[0], arguments[0].shape[2], arguments[2].shape[1]))

    handle = module.model.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        for step in range(steps):
            module.loss(step)
    handle.remove()
    return seen


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_frames_and_clips_share_the_steps_and_every_fourth_of_a_kind_has_long_texts(share: float):
    seen = shapes(dit_module(frame_share=share), 40)
    assert set(seen) <= {(6, 1, 8), (6, 1, 512), (3, 3, 8), (3, 3, 512)}
    for frames, expected in ((1, 40 * share), (3, 40 * (1 - share))):
        of_kind = [length for _, count, length in seen if count == frames]
        assert len(of_kind) == pytest.approx(expected, abs=1)
        assert of_kind == [512 if turn % 4 == 0 else 8 for turn in range(len(of_kind))]


def test_at_a_half_frames_and_clips_alternate():
    assert [count for _, count, _ in shapes(dit_module(frame_share=0.5), 8)] == [1, 3] * 4


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 300), edge=st.floats(0, 1))
def test_sigmas_stay_in_range_whatever_the_edge_share(seed: int, count: int, edge: float):
    module = SIGMAS
    module.edge_share = edge
    sigma = module.sigmas(count, torch.Generator().manual_seed(seed))
    assert sigma.shape == (count,)
    assert sigma.min() >= 0 and sigma.max() <= 1


SIGMAS = dit_module()


def test_a_share_of_sigmas_is_at_the_ends_and_some_are_exactly_zero_or_one():
    sigma = dit_module(edge_share=0.08).sigmas(40000, torch.Generator().manual_seed(0))
    # Three fifths of the share lie near 0, the rest near 1, and half of each exactly there.
    assert (sigma == 0).float().mean() == pytest.approx(0.024, abs=0.003)
    assert (sigma == 1).float().mean() == pytest.approx(0.016, abs=0.003)
    without = dit_module(edge_share=0.0).sigmas(40000, torch.Generator().manual_seed(0))
    assert without.min() > 0 and without.max() < 1
    assert without.median() == pytest.approx(0.75, abs=0.005)  # shift 3: 3 r / (1 + 2 r) at r = 1/2


def test_one_caption_in_ten_is_replaced_by_the_empty_text():
    module = dit_module(frame_share=1.0)
    module.frame_batch = 400
    given: list[torch.Tensor] = []
    hook = module.model.register_forward_pre_hook(lambda _model, arguments: given.append(arguments[2]))
    with torch.no_grad():
        module.loss(1)
    hook.remove()
    empty = (given[0][:, :8] == module.empty.float()).flatten(1).all(1)
    assert empty.float().mean() == pytest.approx(0.1, abs=0.04)
