"""The configs of a backbone, which are all that a plan needs of it: no weight is read and nothing large is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivedit.backbone.folders import resolve_folder
from ivedit.backbone.published import published, published_config, published_names
from ivedit.config.wan_folder import read_folder, vae_factors
from ivedit.errors import ConfigError

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
        ConfigError: a folder that `ivedit.config.wan_folder.read_folder` refuses.
        IveditError: no such folder or name.
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
    try:
        found = read_folder(folder, path, ())
    except ConfigError as error:
        raise ConfigError(f"backbone.path: {error}") from error
    return BackboneConfigs(
        path, found.transformer, found.vae, found.scheduler, found.text_encoder, text_length or found.text_length
    )


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
