"""What a Wan folder's config files say about its diffusion transformer, and which folders are refused.

Nothing here is a constant of one model: patch, head size, latent channels, compression factors and flow shift are
all read. What the two streams of this package cannot run is refused by name, before any weight is loaded, because
a half-right run (one expert of two, an image-to-video transformer without its image) would be silently wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ivedit.errors import IveditError

__all__ = ["BackboneSpec", "Grid", "check_transformer_config", "flow_shift", "vae_factors"]


class Grid(NamedTuple):
    """Token grid of a clip: latent frames F, token rows and token columns of one frame."""

    frames: int
    rows: int
    columns: int

    @property
    def per_frame(self) -> int:
        """N, the number of tokens of one frame."""
        return self.rows * self.columns


@dataclass(frozen=True)
class BackboneSpec:
    """Shapes and constants of a backbone, all read from its configs.

    Attributes:
        name: folder or hub name it came from.
        blocks, width, heads, head_dim, ffn_width: of the transformer; width C = heads * head_dim.
        text_dim: width of the text encoder's states.
        latent_channels: Z.
        patch: (1, ph, pw).
        space_factor, time_factor: pixels per latent cell and frames per latent frame (after the first).
        shift: flow shift k of the folder's scheduler.
        text_length: tokens that texts are padded to.
    """

    name: str
    blocks: int
    width: int
    heads: int
    head_dim: int
    ffn_width: int
    text_dim: int
    latent_channels: int
    patch: tuple[int, int, int]
    space_factor: int
    time_factor: int
    shift: float
    text_length: int
    _fingerprint: Callable[[], str] = field(repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """sha256 of the transformer's weights; computed at the first use, as it reads every weight."""
        return self._fingerprint()

    @property
    def size_multiple(self) -> int:
        """Heights and widths in pixels must divide by it: a token's side, and 16 as diffusers' Wan pipelines ask."""
        return math.lcm(16, self.space_factor * self.patch[1], self.space_factor * self.patch[2])

    def shapes(self) -> dict[str, Any]:
        """What an editor's weights depend on: stored beside them and compared on load."""
        return {
            "blocks": self.blocks,
            "width": self.width,
            "heads": self.heads,
            "ffn_width": self.ffn_width,
            "text_dim": self.text_dim,
            "latent_channels": self.latent_channels,
            "patch": list(self.patch),
        }


def check_transformer_config(name: str, config: Mapping[str, Any], latent_channels: int | None) -> None:
    """Refuse transformers that are not plain text-to-video.

    Args:
        name: folder, for the message.
        config: `transformer/config.json`.
        latent_channels: z_dim of the folder's VAE, where there is one.

    Raises:
        IveditError: image-to-video or VACE transformer, patches over time, or channels that are not the VAE's.
    """
    problems = []
    class_name = config.get("_class_name", "WanTransformer3DModel")
    if class_name != "WanTransformer3DModel":
        problems.append(f"its transformer is a {class_name}; only WanTransformer3DModel (text-to-video) can be run")
    for key in ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"):
        if config.get(key) is not None:
            problems.append(f"transformer.{key} = {config[key]} is an image-to-video transformer's")
    channels_in = config.get("in_channels", 16)
    channels_out = config.get("out_channels") or channels_in
    if channels_in != channels_out:
        problems.append(
            f"transformer.in_channels = {channels_in} but out_channels = {channels_out}: it reads more than the noisy "
            "latents (an image-to-video or channel-concatenation transformer)"
        )
    if latent_channels is not None and channels_in != latent_channels:
        problems.append(f"transformer.in_channels = {channels_in} but the VAE's z_dim = {latent_channels}")
    patch = tuple(config.get("patch_size", (1, 2, 2)))
    if len(patch) != 3 or patch[0] != 1:
        problems.append(f"transformer.patch_size = {list(patch)}: the first entry must be 1 (no patches over time)")
    if problems:
        raise IveditError(
            f"{name} cannot be used as backbone: " + "; ".join(problems) + ". Use a Wan text-to-video folder, e.g. "
            "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        )


def vae_factors(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(z_dim, space factor, time factor) of an `AutoencoderKLWan` config.

    The factors follow from the structure: 2^(levels - 1) times the patch size, and 2^(number of temporal
    downsamplings). The config's own `scale_factor_*` entries are not derived from it and may be stale.
    """
    levels = config.get("dim_mult", [1, 2, 4, 4])
    temporal = config.get("temperal_downsample", [False, True, True])
    space = 2 ** (len(levels) - 1) * (config.get("patch_size") or 1)
    return int(config.get("z_dim", 16)), int(space), int(2 ** sum(bool(t) for t in temporal))


def flow_shift(name: str, scheduler_config: Mapping[str, Any]) -> float:
    """The shift k of sigma = k r / (1 + (k - 1) r) that the folder's scheduler samples with.

    Raises:
        IveditError: the config has neither `flow_shift` (UniPC, DPM++) nor `shift` (FlowMatchEuler).
    """
    for key in ("flow_shift", "shift"):
        value = scheduler_config.get(key)
        if value is not None:
            return float(value)
    raise IveditError(
        f"{name}: scheduler_config.json has neither `flow_shift` nor `shift`; add the flow shift the model samples with"
    )
