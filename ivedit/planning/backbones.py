"""The configs of a backbone, which are all that a plan needs of it: no weight is read and nothing large is fetched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivedit.backbone.folders import resolve_folder
from ivedit.backbone.loading import WAN_TEXT_LENGTH
from ivedit.backbone.published import published, published_config, published_names
from ivedit.backbone.spec import vae_factors
from ivedit.errors import IveditError

__all__ = ["BackboneConfigs", "backbone_configs", "text_encoder_parameters", "vae_parameters"]


@dataclass(frozen=True)
class BackboneConfigs:
    """What the config files of a pipeline folder hold.

    Attributes:
        name: As `backbone.path` says it.
        transformer, vae, scheduler: Of the parts of that name.
        text_encoder: None where the folder has none.
        text_length: Tokens that texts are padded to.
    """

    name: str
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    text_encoder: Mapping[str, Any] | None
    text_length: int

    @property
    def blocks(self) -> int:
        """Blocks of the transformer."""
        return int(self.transformer["num_layers"])

    @property
    def factors(self) -> tuple[int, int, int]:
        """(latent channels, space factor, time factor) of the VAE."""
        return vae_factors(dict(self.vae))


def backbone_configs(path: str, text_length: int | None = None) -> BackboneConfigs:
    """The configs behind a `backbone.path`: of a published name or its hub name, of a folder, of another hub name.

    Args:
        path: As in the configuration.
        text_length: Overrides the backbone's own.

    Raises:
        IveditError: no such folder, name or config file.
    """
    for name in published_names():  # a folder of that name comes first, as when it is loaded
        if path in (name, published(name).hub) and not Path(path).is_dir():
            return BackboneConfigs(
                path,
                published_config(name, "transformer"),
                published_config(name, "vae"),
                published_config(name, "scheduler"),
                published_config(name, "text_encoder"),
                text_length or published(name).text_length,
            )
    folder = resolve_folder(path, ())
    own = folder / "ivedit.json"
    length = json.loads(own.read_text(encoding="utf-8")).get("text_length") if own.is_file() else None
    encoder = folder / "text_encoder" / "config.json"
    return BackboneConfigs(
        path,
        _read(folder / "transformer" / "config.json"),
        _read(folder / "vae" / "config.json"),
        _read(folder / "scheduler" / "scheduler_config.json"),
        _read(encoder) if encoder.is_file() else None,
        text_length or length or WAN_TEXT_LENGTH,
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise IveditError(f"backbone.path: {file} cannot be read ({error.strerror}): incomplete folder") from error
    except ValueError as error:
        raise IveditError(f"backbone.path: {file} is not valid JSON: {error}") from error


def text_encoder_parameters(config: Mapping[str, Any]) -> int:
    """Number of weights of a UMT5 or T5 encoder (transformers' `UMT5EncoderModel`), in closed form.

    A layer has four attention projections, gated or plain feed-forward matrices, two norms, and in UMT5 its own
    relative position bias; T5 has one bias, in its first layer.
    """
    model, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    gated = str(config.get("feed_forward_proj", "gated-gelu")).startswith("gated")
    layer = 4 * model * inner + (3 if gated else 2) * model * config["d_ff"] + 2 * model
    bias = config.get("relative_attention_num_buckets", 32) * config["num_heads"]
    biases = config["num_layers"] if config.get("model_type", "umt5") == "umt5" else 1
    return int(config["vocab_size"] * model + config["num_layers"] * layer + biases * bias + model)


def vae_parameters(config: Mapping[str, Any]) -> int:
    """Number of weights of an `AutoencoderKLWan`, built without content."""
    import torch
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        vae = AutoencoderKLWan.from_config(dict(config))
    return sum(weight.numel() for weight in vae.parameters())
