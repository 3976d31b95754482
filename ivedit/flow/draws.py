"""Random numbers as pure functions of where they are used.

Noise and timesteps of training are functions of (seed, step, rank, place in the step); noise of sampling
is a function of a clip's own seed. So a resumed run draws what the uninterrupted one drew, a batch cut into
micro-batches draws what the whole batch drew, and a sample's noise never depends on its neighbours. Numbers
are drawn on the CPU, so that they are the same on every device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["clip_seeds", "draw_noise", "even_draws", "mix_seed", "stratified", "training_draws"]

_MASK = (1 << 64) - 1


def _splitmix(x: int) -> int:
    """One round of SplitMix64 (Steele et al., OOPSLA 2014): neighbouring integers become unrelated ones."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def mix_seed(*parts: int) -> int:
    """Hash integers into one seed in [0, 2^63); the order of ``parts`` matters."""
    state = 0
    for part in parts:
        state = _splitmix(state ^ (part & _MASK))
    return state >> 1


def clip_seeds(seed: int, clips: Sequence[int] | range) -> list[int]:
    """Noise seeds of sampled clips: clip number i's is a function of (``seed``, i)."""
    return [mix_seed(seed, clip) for clip in clips]


def even_draws(seed: int, samples: Sequence[int] | range) -> tuple[Tensor, list[int]]:
    """Fixed draws for validation: sample number i always gets the same timestep and noise.

    The timesteps are the golden-ratio sequence ``frac((i + 1) phi)``, so that any run of samples, however it is
    cut into batches, covers (0, 1) evenly.

    Returns:
        r (B,) float32 in (0, 1), and B noise seeds for :func:`draw_noise`.
    """
    numbers = torch.tensor(list(samples), dtype=torch.float64)
    r = torch.frac((numbers + 1) * 0.6180339887498949).clamp(1e-6, 1 - 1e-6)
    return r.float(), [mix_seed(seed, 2, sample) for sample in samples]


def draw_noise(shape_per_sample: Sequence[int], seeds: Sequence[int] | Tensor) -> Tensor:
    """Standard normal noise, one generator per sample.

    Args:
        shape_per_sample: Shape without the batch, e.g. (Z, F, h, w).
        seeds: B seeds in [0, 2^63).

    Returns:
        (B, *shape_per_sample) float32 on the CPU; row i is a function of ``seeds[i]`` and the shape alone.
    """
    numbers = seeds.tolist() if isinstance(seeds, Tensor) else list(seeds)
    noise = torch.empty(len(numbers), *shape_per_sample)
    generator = torch.Generator()
    for row, number in zip(noise, numbers, strict=True):
        torch.randn(row.shape, generator=generator.manual_seed(int(number)), out=row)
    return noise


def stratified(n: int, seed: int) -> Tensor:
    """``n`` uniform numbers in (0, 1], one in each n-th of the interval, in random order: (n,) float32."""
    generator = torch.Generator().manual_seed(seed)
    strata = torch.randperm(n, generator=generator).double()
    return ((strata + 1 - torch.rand(n, generator=generator, dtype=torch.float64)) / n).float()


def training_draws(
    seed: int, step: int, rank: int, micro: int, batch: int, draws: int = 1, *, micros: int = 1
) -> tuple[Tensor, list[int]]:
    """Timesteps and noise seeds of one micro-batch, a pure function of its arguments.

    The ``micros`` micro-batches of an optimiser step are drawn as one: r is stratified over all of the step's
    samples on a rank, and ``micros=2, batch=4`` draws exactly what ``micros=1, batch=8`` draws.

    Args:
        seed: The run's seed.
        step: Optimiser step, counted from 0.
        rank: Process.
        micro: Index of the micro-batch inside the step, in [0, micros).
        batch: Pairs in a micro-batch (B).
        draws: (sigma, noise) draws that share one pair.
        micros: Micro-batches of an optimiser step.

    Returns:
        r (B * draws,) float32 in (0, 1] for :func:`ivedit.flow.sample_sigma`, and as many seeds for
        :func:`draw_noise`. The draws of a pair are consecutive, as ``Tensor.repeat_interleave`` puts them: entry
        ``b * draws + d`` is draw ``d`` of pair ``b``.

    Raises:
        ValueError: ``micro`` is outside the step.
    """
    if not 0 <= micro < micros:
        raise ValueError(f"micro-batch {micro} does not exist in a step of {micros}")
    root = mix_seed(seed, step, rank)
    mine = range(micro * batch * draws, (micro + 1) * batch * draws)
    r = stratified(micros * batch * draws, mix_seed(root, 0))[mine.start : mine.stop]
    return r, [mix_seed(root, 1, place) for place in mine]
