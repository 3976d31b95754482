"""The straight path between data and noise, its velocity, and which sigmas training visits.

Rectified flow (Liu et al., arXiv 2209.03003; Lipman et al., arXiv 2210.02747) with the resolution shift and
the logit-normal timesteps of Esser et al., arXiv 2403.03206.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "change_weight",
    "interpolate",
    "predict_x0",
    "sample_sigma",
    "shift_sigma",
    "unshift_sigma",
    "velocity_loss",
    "velocity_target",
]


def shift_sigma(r: Tensor, k: float) -> Tensor:
    """Shift timesteps towards noise: ``sigma = k r / (1 + (k - 1) r)`` (arXiv 2403.03206, eq. 23).

    Args:
        r: Unshifted timesteps in [0, 1], any shape.
        k: The shift, above 0; 1 leaves ``r`` as it is.

    Raises:
        ValueError: ``k`` is not above 0.
    """
    if not k > 0:
        raise ValueError(f"the flow shift must be above 0, not {k}")
    return k * r / (1 + (k - 1) * r)


def unshift_sigma(sigma: Tensor, k: float) -> Tensor:
    """The inverse of :func:`shift_sigma`, which is the shift by ``1 / k``."""
    if not k > 0:
        raise ValueError(f"the flow shift must be above 0, not {k}")
    return shift_sigma(sigma, 1 / k)


def sample_sigma(kind: str, r: Tensor, *, shift: float, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Turn uniform numbers into training sigmas.

    ``uniform``: ``shift_sigma(r)``. ``logit_normal``: r goes through the quantile function of the
    logit-normal distribution, ``sigmoid(mean + std * ndtri(r))``, before it is shifted; so stratified ``r``
    stay stratified.

    Args:
        kind: ``uniform`` or ``logit_normal``.
        r: Uniform numbers in (0, 1], any shape.
        shift: Flow shift k, above 0.
        mean: Mean of logit(r), for ``logit_normal``.
        std: Standard deviation of logit(r), above 0, for ``logit_normal``.

    Returns:
        Sigmas in (0, 1], of ``r``'s shape and type.

    Raises:
        ValueError: Unknown ``kind``, or ``shift`` or ``std`` out of range.
    """
    if kind == "uniform":
        return shift_sigma(r, shift)
    if kind == "logit_normal":
        if not std > 0:
            raise ValueError(f"the standard deviation of logit(r) must be above 0, not {std}")
        return shift_sigma(torch.sigmoid(mean + std * torch.special.ndtri(r)), shift)
    raise ValueError(f"unknown timestep distribution {kind!r}: uniform or logit_normal")


def _beside(sigma: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, ...) so that it multiplies ``like`` sample by sample."""
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """``x_sigma = (1 - sigma) x0 + sigma noise``; ``x0`` and ``noise`` (B, ...), ``sigma`` (B,) in [0, 1]."""
    s = _beside(sigma, x0)
    return (1 - s) * x0 + s * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """``v = noise - x0``, the derivative of :func:`interpolate` by sigma; all (B, ...)."""
    return noise - x0


def predict_x0(x: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """One-step estimate of the data, ``x - sigma v``; ``x`` and ``velocity`` (B, ...), ``sigma`` (B,)."""
    return x - _beside(sigma, x) * velocity


def change_weight(source: Tensor, target: Tensor, share: float, scale: float = 0.25) -> Tensor:
    """Weight of each latent place in the loss, so that a small edit counts as much as what it leaves alone.

    ``a = d^2 / (d^2 + scale^2)`` with d the root mean square, over channels, of target - source: 0 where nothing
    changes, 1 where much does. ``w = 1 - share + share * a / mean(a)``: places that change hold at least ``share`` of
    the weight, whatever their area. ``mean(a)`` is kept above 1/16, which bounds w; w is then divided by its mean.

    Args:
        source: Latents (B, Z, F, h, w).
        target: The same shape.
        share: In [0, 1]; 0: equal weights.
        scale: Distance, in standard deviations of the latents, that counts as half a change.

    Returns:
        (B, 1, F, h, w) float32 with mean 1 in each sample.
    """
    squared = (target.float() - source.float()).square().mean(dim=1, keepdim=True)
    a = squared / (squared + scale**2)
    places = tuple(range(1, a.ndim))
    weight = 1 - share + share * a / a.mean(dim=places, keepdim=True).clamp(min=1 / 16)
    return weight / weight.mean(dim=places, keepdim=True)


def velocity_loss(v_hat: Tensor, v: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample, in float32: (B, ...), (B, ...) -> (B,); ``weight`` broadcasts to them."""
    squared = (v_hat.float() - v.float()).square()
    if weight is not None:
        squared = squared * weight
    return squared.flatten(1).mean(dim=1)
