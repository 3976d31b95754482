"""A frozen pipeline: its parts, where they come from and where they are, pixels to latents, words to states.

What runs through its transformer is `ivedit.backbone.model`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from ivedit.backbone.encoding import decode_pixels, encode_latents, encode_texts
from ivedit.backbone.identity import bits_digest, weights_digest
from ivedit.backbone.loading import keep_dtype, read_parts, storage_dtype
from ivedit.backbone.offload import Offload
from ivedit.backbone.parts import Origin
from ivedit.backbone.spec import BackboneSpec, Grid
from ivedit.config.wan_folder import COMPONENTS, WAN_TEXT_LENGTH, check_transformer_config, flow_shift, vae_factors
from ivedit.data.text import TextStates
from ivedit.errors import IveditError

if TYPE_CHECKING:
    from ivedit.backbone.sharded import Sharding

__all__ = ["FrozenPipeline"]


class FrozenPipeline(nn.Module):
    """Transformer, VAE and text encoder of a Wan pipeline; see `ivedit.backbone.Backbone`, which is one."""

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(
        self,
        transformer: Any,
        vae: Any = None,
        text_encoder: nn.Module | None = None,
        tokenizer: Any = None,
        scheduler_config: Mapping[str, Any] | None = None,
        *,
        vae_config: Mapping[str, Any] | None = None,
        transformer_config: Mapping[str, Any] | None = None,
        text_length: int = WAN_TEXT_LENGTH,
        name: str = "in memory",
        gradient_checkpointing: bool = False,
    ) -> None:
        """Wrap loaded parts; see `load` and `from_parts`."""
        super().__init__()
        self.transformer = transformer
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.scheduler_config = dict(scheduler_config or {"shift": 1.0})
        self.gradient_checkpointing = gradient_checkpointing
        self.source_passes = 0
        self.origin: Origin | None = None
        self.compiles: str | None = None
        self.sharding: Sharding | None = None
        self._rotary: dict[tuple[Grid, torch.device], tuple[Tensor, Tensor]] = {}
        self._fingerprint: str | None = None
        self.offload: Offload | None = None
        vae_config = dict(vae.config) if vae is not None else dict(vae_config or {})
        latent_channels, space, time = vae_factors(vae_config)
        config = dict(transformer.config) if transformer is not None else dict(transformer_config or {})
        check_transformer_config(name, config, latent_channels if vae_config and config else None)
        self.spec = BackboneSpec(
            name=name,
            blocks=config.get("num_layers", 0),
            width=config.get("num_attention_heads", 0) * config.get("attention_head_dim", 0),
            heads=config.get("num_attention_heads", 0),
            head_dim=config.get("attention_head_dim", 0),
            ffn_width=config.get("ffn_dim", 0),
            text_dim=config.get("text_dim", 0),
            latent_channels=config.get("in_channels", latent_channels),
            patch=(1, int(config.get("patch_size", (1, 1, 1))[1]), int(config.get("patch_size", (1, 1, 1))[2])),
            space_factor=space,
            time_factor=time,
            shift=flow_shift(name, self.scheduler_config),
            text_length=text_length,
            _fingerprint=self.fingerprint,
        )
        if not vae_config:  # no VAE at all: latents pass through as they are
            latent_channels = self.spec.latent_channels
        mean = torch.tensor(vae_config.get("latents_mean", [0.0] * latent_channels), dtype=torch.float32)
        std = torch.tensor(vae_config.get("latents_std", [1.0] * latent_channels), dtype=torch.float32)
        self.register_buffer("latents_mean", mean.view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("latents_std", std.view(1, -1, 1, 1, 1), persistent=False)
        self.requires_grad_(False)
        super().train(False)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        text_length: int | None = None,
        components: Sequence[str] = COMPONENTS,
        gradient_checkpointing: bool = False,
    ) -> Self:
        """Load a Wan 2.1 or 2.2-TI2V folder, a hub name, or `wan-sprites`.

        Args:
            path: as `backbone.path` of the configuration.
            dtype: storage type of the frozen weights; auto is bfloat16 on a GPU, float32 on a CPU.
            device: where the parts go.
            text_length: padded text length; None: `ivedit.json` of the folder, else 512.
            components: any of transformer, vae, text_encoder.
            gradient_checkpointing: see the class.

        Raises:
            IveditError: a folder that cannot be run; the message names what and why.
        """
        device = torch.device(device)
        origin = Origin(path, storage_dtype(dtype, device))
        parts = read_parts(path, dtype=origin.dtype, components=components, text_length=text_length, device=device)
        backbone = cls(
            parts.transformer,
            parts.vae,
            parts.text_encoder,
            parts.tokenizer,
            parts.scheduler_config,
            vae_config=parts.vae_config,
            transformer_config=parts.transformer_config,
            text_length=parts.text_length,
            name=parts.name,
            gradient_checkpointing=gradient_checkpointing,
        )
        backbone.origin = origin
        return backbone.to(device)

    @classmethod
    def from_parts(
        cls,
        transformer: Any,
        vae: Any = None,
        text_encoder: nn.Module | None = None,
        tokenizer: Any = None,
        scheduler_config: Mapping[str, Any] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        vae_config: Mapping[str, Any] | None = None,
        text_length: int = WAN_TEXT_LENGTH,
        name: str = "in memory",
        gradient_checkpointing: bool = False,
    ) -> Self:
        """Wrap parts made in memory (tests, benchmarks with random weights at true sizes).

        Without a VAE the factors are those of `vae_config`, else Wan 2.1's (8 in space, 4 in time). In bfloat16 the
        modules that Wan keeps in float32 are kept so.
        """
        if transformer is not None:
            keep_dtype(transformer, dtype)
        if text_encoder is not None:
            text_encoder.to(dtype)
        backbone = cls(
            transformer,
            vae,
            text_encoder,
            tokenizer,
            scheduler_config,
            vae_config=vae_config,
            text_length=text_length,
            name=name,
            gradient_checkpointing=gradient_checkpointing,
        )
        return backbone.to(device)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever a surrounding module asks for."""
        return super().train(False)

    def _have(self, part: str) -> Any:
        value = getattr(self, part)
        if value is None:
            raise IveditError(f"this backbone was loaded without its {part}; add it to `components`")
        return value

    def _need(self, part: str) -> Any:
        """A part that is about to be used."""
        value = self._have(part)
        if self.offload is not None:
            self.offload.use(part)
        return value

    def offload_to(self, device: str | torch.device) -> None:
        """From here on keep each part on ``device`` only while it is used; all parts must be on the CPU now.

        Text encoder, VAE and transformer come in turn, so the largest one decides the memory. On the CPU nothing moves.
        """
        parts = {name: part for name in COMPONENTS if (part := getattr(self, name)) is not None}
        self.offload = Offload(parts, device)
        # What is not of a part says where the streams run.
        self.latents_mean, self.latents_std = self.latents_mean.to(device), self.latents_std.to(device)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.latents_mean.device

    # ---- pixels and text

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(B, T, 3, H, W) in [0, 1] -> normalised latents (B, Z, F, h, w), float32.

        Raises:
            IveditError: T is not 1 + a multiple of the time factor, or H or W do not divide.
        """
        vae = self._need("vae")
        _, frames, _, height, width = pixels.shape
        step = max(self.spec.time_factor, 4)  # diffusers' encoder reads chunks of four frames
        if (frames - 1) % step:
            fit = 1 + (frames - 1) // step * step
            raise IveditError(f"a clip of {frames} frames: the VAE takes 1 + a multiple of {step}, e.g. {fit}")
        rows, columns = self.spec.space_factor * self.spec.patch[1], self.spec.space_factor * self.spec.patch[2]
        if height % rows or width % columns:
            raise IveditError(f"a clip of {height}x{width} pixels: height must divide by {rows} and width by {columns}")
        return encode_latents(vae, pixels, self.latents_mean, self.latents_std)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, Z, F, h, w) -> pixels (B, T, 3, H, W) float32 in [0, 1]."""
        return decode_pixels(self._need("vae"), latents, self.latents_mean, self.latents_std, self.spec.space_factor)

    def encode_text(self, texts: list[str]) -> TextStates:
        """States (B, text_length, D), zero behind each text; `""` is what dropped text looks like."""
        return encode_texts(self.tokenizer, self._need("text_encoder"), texts, self.spec.text_length)

    # ---- identity of the weights

    def fingerprint(self, *, parts: Sequence[str] = ("transformer",), exact: bool = False) -> str:
        """What identifies frozen weights: names, shapes and values (see `ivedit.backbone.identity`).

        Args:
            parts: which of transformer, vae, text_encoder.
            exact: of every stored bit, computed on the device (to see that training changed nothing). Otherwise the
                sha256 of the values rounded to bfloat16: one checkpoint has one fingerprint, however it is stored.
        """
        plain = tuple(parts) == ("transformer",) and not exact
        if plain and self._fingerprint is not None:
            return self._fingerprint
        if plain and self.sharding is not None:
            raise IveditError("ask for the fingerprint before the backbone is spread over the ranks")
        weights = (
            (f"{part}.{name}", weight)
            for part in parts
            for name, weight in sorted(self._have(part).named_parameters())
        )
        digest = bits_digest(weights) if exact else weights_digest(weights)
        if plain:
            self._fingerprint = digest
        return digest
