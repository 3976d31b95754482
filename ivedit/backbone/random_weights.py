"""Published backbones at their true size with random weights, built on the device itself.

Cost, memory, shapes and gradients are those of the real weights, which cannot be fetched everywhere; pictures are
noise. A model is laid out without memory (on torch's meta device), given its storage types (bfloat16, float32 where
Wan keeps it), allocated on the device and filled there: 14 billion weights never exist on the host nor in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ivedit.backbone.loading import storage_dtype
from ivedit.backbone.model import Backbone
from ivedit.backbone.published import published, published_config
from ivedit.backbone.weights import allocate
from ivedit.config.wan_folder import COMPONENTS
from ivedit.errors import IveditError

__all__ = ["random_backbone"]


def random_backbone(
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    seed: int = 0,
    layers: int | None = None,
    components: Sequence[str] = ("transformer",),
    gradient_checkpointing: bool = False,
) -> Backbone:
    """A published backbone with random weights; ``spec.name`` says so.

    Args:
        name: of `known.yaml`, e.g. ``wan2.1_1.3b``.
        device: where it is built. ``meta``: shapes only, without any memory (for counting).
        dtype: storage type, as in `Backbone.load`; the VAE is float32.
        seed: the same weights for the same seed on the same kind of device, whichever other components are built.
        layers: transformer blocks; None: all of them.
        components: any of transformer, vae, text_encoder (without its tokenizer, which is no matter of shapes).
        gradient_checkpointing: as in `Backbone.load`.

    Returns:
        The backbone. Linear layers are normal with variance 1 / fan-in, norms 1, biases 0, tables 1 / C, so that
        activations stay finite at any depth.

    Raises:
        IveditError: no such name or component, or fewer than one layer.
    """
    known, device = published(name), torch.device(device)
    unknown = [part for part in components if part not in COMPONENTS]
    if unknown:
        raise IveditError(f"unknown components {unknown}; known: {', '.join(COMPONENTS)}")
    transformer_config = published_config(name, "transformer")
    if layers is not None:
        if layers < 1:
            raise IveditError(f"layers: {layers} is out of range; a transformer has at least one block")
        transformer_config["num_layers"] = layers
    storage = storage_dtype(dtype, device)
    parts = {
        part: _built(part, config, torch.float32 if part == "vae" else storage, device, seed + place)
        for place, (part, config) in enumerate(
            {
                "transformer": transformer_config,
                "vae": published_config(name, "vae"),
                "text_encoder": published_config(name, "text_encoder"),
            }.items()
        )
        if part in components
    }
    backbone = Backbone(
        parts.get("transformer"),
        parts.get("vae"),
        parts.get("text_encoder"),
        None,
        published_config(name, "scheduler"),
        vae_config=published_config(name, "vae"),
        transformer_config=transformer_config,
        text_length=known.text_length,
        name=f"{name} with random weights" + (f", {layers} blocks" if layers is not None else ""),
        gradient_checkpointing=gradient_checkpointing,
    )
    return backbone.to(device)


def _built(part: str, config: dict[str, Any], dtype: torch.dtype, device: torch.device, seed: int) -> Any:
    """One part with random weights, made on ``device``."""
    model = allocate(part, config, dtype, device)
    if device.type != "meta":
        _fill(model, torch.Generator(device).manual_seed(seed))
    return model


@torch.no_grad()
def _fill(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight in place."""
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.zero_()
        elif weight.ndim == 1 or name.endswith("gamma"):  # norms
            weight.fill_(1)
        elif "scale_shift_table" in name or "relative_attention_bias" in name:
            weight.normal_(std=weight.shape[-1] ** -0.5, generator=generator)
        elif "shared" in name or "embed_tokens" in name:
            weight.normal_(generator=generator)
        else:
            weight.normal_(std=weight[0].numel() ** -0.5, generator=generator)
