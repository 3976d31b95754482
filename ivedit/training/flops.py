"""Counted floating-point operations of a configuration: one training step, one step of sampling.

PyTorch's own counter (`torch.utils.flop_counter`: a multiply-add is two, matrix products, convolutions and attention
only) looks at the real code, once forward and backward and once in sampling, with one pair and one clip of random
numbers on a CPU. All parts of a step are linear in the number of pairs, so a step of the configuration is that times
its pairs (with `data.buckets` the mean over their sizes). Images and texts are encoded once and kept, so the VAE and
the text encoder are not part of a step.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ivedit.backbone import Backbone
from ivedit.config.buckets import Size
from ivedit.data.buckets import configured_sizes
from ivedit.data.text import TextStates
from ivedit.editor import Editor, EditText, build_editor
from ivedit.training.module import EditModule

__all__ = ["count_flops"]

_SEED = 0


def count_flops(cfg: Any, backbone: Backbone | None = None) -> dict[str, int]:
    """FLOPs of the arm that ``cfg`` describes; they depend on shapes only, never on weights or data.

    Args:
        cfg: A run's `Config`.
        backbone: Its backbone on the CPU, transformer loaded; None: loaded from ``backbone.path``.

    Returns:
        ``training_step``: forward and backward pass of all pairs and draws of one optimiser step, the source's pass
        included, every one of ``data.buckets`` counting alike; ``sampling_step``: one denoising step of one clip of
        ``evaluation.frames`` frames, both branches where ``sampling.guidance`` is not 1; ``sampling_source``: reading
        the clip's source, once per clip.

    Raises:
        IveditError: a backbone that cannot be loaded, an editor that does not fit it.
    """
    if backbone is None:
        backbone = _load(cfg.backbone.path, cfg.text.length)
    editor = build_editor(cfg.editor, backbone, seed=_SEED)
    # the fused attention of a CPU is not counted in every torch; the plain one is, with the same products
    with sdpa_kernel(SDPBackend.MATH):
        step = _mean_training_pair(cfg, backbone, editor)
        source, sampling = _sampling_clip(cfg, backbone, editor)
    train = cfg.train
    pairs = train.batch_size * train.accumulate * train.devices * train.nodes
    branches = 1 if cfg.sampling.guidance == 1 else 2
    return {"training_step": step * pairs, "sampling_step": sampling * branches, "sampling_source": source}


@lru_cache(maxsize=1)  # the arms of a sweep share one
def _load(path: str, text_length: int | None) -> Backbone:
    return Backbone.load(path, dtype="float32", text_length=text_length, components=("transformer",))


def _mean_training_pair(cfg: Any, backbone: Backbone, editor: Editor) -> int:
    """Forward and backward pass of one pair with all its draws, over the picture sizes."""
    sizes = configured_sizes(cfg, backbone.spec.size_multiple)
    # Only the number of tokens counts, and sizes of one area are many.
    different = {height * width: (height, width) for height, width in sizes}
    counted = {area: _training_pair(cfg, backbone, editor, size) for area, size in different.items()}
    return sum(counted[height * width] for height, width in sizes) // len(sizes)


def _training_pair(cfg: Any, backbone: Backbone, editor: Editor, size: Size) -> int:
    """Forward and backward pass of one pair of a size with all its draws."""
    module = EditModule(backbone, editor, cfg, max_steps=1)
    text = _texts(cfg, backbone)
    latents = _latents(backbone, 1, size)
    batch = {
        "source": latents, "target": latents,
        "text_target": text.target, "text_gate": text.gate, "text_source": text.source,
    }  # fmt: skip
    draws = cfg.flow.draws_per_pair
    tensors = module.step_tensors(
        batch, torch.linspace(0.2, 0.8, draws), list(range(draws)), shift=module.shift, kind=cfg.flow.timesteps
    )
    with FlopCounterMode(display=False) as counter:
        module.sample_losses(tensors).mean().backward()
    return int(counter.get_total_flops())


def _sampling_clip(cfg: Any, backbone: Backbone, editor: Editor) -> tuple[int, int]:
    """Reading one clip's source, and one denoising step of it."""
    frames = 1 + (cfg.evaluation.frames - 1) // backbone.spec.time_factor
    latents = _latents(backbone, frames, (cfg.data.height, cfg.data.width))
    text = _texts(cfg, backbone)
    with torch.no_grad():
        with FlopCounterMode(display=False) as reading:
            context = editor.prepare(backbone, latents, text, project=True)
        with FlopCounterMode(display=False) as step:
            editor.velocity(backbone, latents, torch.tensor([0.5]), context, text)
    return int(reading.get_total_flops()), int(step.get_total_flops())


def _latents(backbone: Backbone, frames: int, size: Size) -> torch.Tensor:
    """(1, Z, frames, h, w) random latents of a picture size in pixels."""
    spec = backbone.spec
    generator = torch.Generator().manual_seed(_SEED)
    cells = (size[0] // spec.space_factor, size[1] // spec.space_factor)
    return torch.randn(1, spec.latent_channels, frames, *cells, generator=generator)


def _texts(cfg: Any, backbone: Backbone) -> EditText:
    """One sample's texts: those that the run would share are one object, which is embedded once."""
    length = cfg.text.length or backbone.spec.text_length
    mask = torch.arange(length)[None] < max(1, length // 2)

    def text() -> TextStates:
        return TextStates(torch.zeros(1, length, backbone.spec.text_dim), mask)

    target = text()
    gate = text() if cfg.text.gate == "shuffled" else target
    source = target if cfg.text.source == "instruction" and cfg.text.target == "instruction" else text()
    return EditText(target, gate, source)
