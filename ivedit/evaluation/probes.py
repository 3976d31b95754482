"""Quick tells that say *why* an edit fails, each on noised true edits rather than on whole samplings.

- The ceiling: noise the true edit to sigma 0.5 and 0.7 and let the frozen backbone denoise it with the true caption.
  What that loses, no edit module can win back: the backbone cannot draw it.
- The one-step estimate at sigma 0.98, where next to nothing of the picture is left: what the instruction alone puts
  into it. A recolour whose estimate lacks the colour was not learned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ivedit.config.schema import SamplingConfig, TextConfig
from ivedit.editor import EditText
from ivedit.evaluation.clips import ClipBatch, ClipSet, Latents
from ivedit.evaluation.quick import edit_batch, region_scores
from ivedit.flow import draw_noise, interpolate, predict_x0
from ivedit.pipeline import IVEditPipeline

__all__ = ["CEILING_SIGMAS", "ONE_STEP_SIGMA", "ceiling_scores", "edit_text", "noised", "one_step"]

CEILING_SIGMAS = (0.5, 0.7)
ONE_STEP_SIGMA = 0.98


def edit_text(backbone: Any, batch: ClipBatch, text: TextConfig) -> EditText:
    """The texts of a batch, as the ``text`` section distributes them in training."""
    instructions = backbone.encode_text(batch.instructions)
    target = instructions if text.target == "instruction" else backbone.encode_text(batch.target_captions)
    gate = instructions if text.gate == "instruction" else backbone.encode_text(batch.other_instructions)
    source = instructions if text.source == "instruction" else backbone.encode_text([""] * len(batch))
    return EditText(target=target, gate=gate, source=source)


def noised(true: Tensor, sigma: float, seeds: list[int]) -> tuple[Tensor, Tensor]:
    """Latents (B, Z, F, h, w) at ``sigma``, and sigma as (B,)."""
    sigmas = true.new_full((len(true),), sigma)
    return interpolate(true, draw_noise(true.shape[1:], seeds).to(true), sigmas), sigmas


def ceiling_scores(
    backbone: Any,
    clips: ClipSet,
    sigma: float,
    *,
    sampling: SamplingConfig,
    batch_size: int,
    edited_db: float,
    kept_db: float,
) -> dict[str, Tensor]:
    """Edited PSNR, kept PSNR and success of true edits noised to ``sigma`` and denoised with their captions."""
    frozen = IVEditPipeline(backbone, None)

    def produce(batch: ClipBatch) -> Tensor:
        true = backbone.encode_pixels(batch.reference.target)
        return backbone.decode_latents(edit_batch(frozen, batch, true, sampling=sampling, start=(true, sigma)))

    return region_scores(clips, produce, batch_size=batch_size, edited_db=edited_db, kept_db=kept_db)


@torch.no_grad()
def one_step(
    backbone: Any, editor: Any, clips: ClipSet, *, text: TextConfig, seed: int, batch_size: int
) -> dict[str, Tensor]:
    """The estimate x - sigma v at `ONE_STEP_SIGMA`, decoded: (M,) each.

    Returns:
        ``edited_psnr``, ``kept_psnr`` in dB; ``colour_error``: the distance between the mean RGB colour of the edited
        region and the true one, from 0 to sqrt(3), for recolours only (NaN for other operations).
    """
    errors: list[Tensor] = []

    def produce(batch: ClipBatch) -> Tensor:
        texts = edit_text(backbone, batch, text)
        latents = Latents(backbone.encode_pixels, batch.reference)
        context = editor.prepare(backbone, latents.source, texts)
        noisy, sigma = noised(latents.target, ONE_STEP_SIGMA, batch.seeds(seed))
        velocity = editor.velocity(backbone, noisy, sigma, context, texts)
        pixels = backbone.decode_latents(predict_x0(noisy, velocity, sigma))
        error = mean_colour_error(pixels, batch.reference.target, batch.reference.mask)
        recolour = torch.tensor([name == "recolour" for name in batch.operations], device=error.device)
        errors.append(torch.where(recolour, error, torch.nan).cpu())
        return pixels

    values = region_scores(clips, produce, batch_size=batch_size)
    del values["success"]  # one step from noise is not an edit
    return {**values, "colour_error": torch.cat(errors)}


def mean_colour_error(pixels: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """(B,) distance of the mean colours inside ``mask`` (B, T, 1, H, W); NaN where it is empty."""
    inside = mask.sum(dim=(1, 3, 4))  # (B, 1)
    colours = [torch.where(mask, x.float(), 0).sum(dim=(1, 3, 4)) / inside for x in (pixels, target)]
    return (colours[0] - colours[1]).norm(dim=1)
