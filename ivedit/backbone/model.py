"""The frozen backbone: a Wan text-to-video transformer with its VAE and text encoder.

`Backbone` gives the two streams of the method. `source_features` runs clean source latents at timestep 0 and keeps
what each block's self-attention reads; `embed`, `condition`, `block`, `head` are the steps of the target stream, so
that an editor can run it with its own openings. `velocity` is the plain frozen transformer. Nothing here is ever
trained, and nothing synchronises with the host: a step can be captured as a CUDA graph after one warm-up call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ivedit.backbone.blocks import (
    BlockModulation,
    Conditioning,
    modulated_input,
    output_head,
    run_block,
    source_block,
)
from ivedit.backbone.compiled import compiled
from ivedit.backbone.encoding import decode_pixels, encode_latents, encode_texts
from ivedit.backbone.identity import bits_digest, weights_digest
from ivedit.backbone.loading import COMPONENTS, WAN_TEXT_LENGTH, keep_dtype, read_parts, storage_dtype
from ivedit.backbone.offload import Offload
from ivedit.backbone.parts import Origin
from ivedit.backbone.spec import BackboneSpec, Grid, check_transformer_config, flow_shift, vae_factors
from ivedit.data.text import TextStates
from ivedit.errors import IveditError

if TYPE_CHECKING:
    from ivedit.backbone.sharded import Sharding

__all__ = ["Backbone"]

TIMESTEPS = 1000.0


class Backbone(nn.Module):
    """A frozen Wan pipeline; every parameter has `requires_grad=False` and the module stays in eval mode.

    Attributes:
        spec: shapes and constants read from the configs.
        transformer, vae, text_encoder, tokenizer: the parts, None where not loaded.
        scheduler_config: the folder's, for `ivedit.flow`.
        origin: where its parts can be read again (see `ivedit.backbone.parts`); None for one made in memory.
        source_passes: how often `source_features` ran.
        gradient_checkpointing: recompute each block in the backward pass.
        compiles: the backend of torch.compile through which blocks run, or None; set for a while by `compiling`.
        sharding: how blocks are put together where ranks share one copy of them (`sharded.shard_backbone`), else None.
    """

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
    ) -> Backbone:
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
    ) -> Backbone:
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

    def train(self, mode: bool = True) -> Backbone:
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

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks."""
        return self._have("transformer").blocks

    def compute_dtype(self) -> torch.dtype:
        """Type of the blocks' matrix products: autocast's where it is on, else the storage type."""
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return self._have("transformer").patch_embedding.weight.dtype

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

    # ---- the steps of a stream

    def grid(self, latents: Tensor) -> Grid:
        """Token grid of latents (B, Z, F, h, w).

        Raises:
            IveditError: the patch does not divide the latents, or their channels are another VAE's.
        """
        _, channels, frames, height, width = latents.shape
        _, ph, pw = self.spec.patch
        if channels != self.spec.latent_channels:
            raise IveditError(f"latents have {channels} channels; {self.spec.name} takes {self.spec.latent_channels}")
        if height % ph or width % pw:
            raise IveditError(
                f"latents of {height}x{width} are not divisible by the patch {ph}x{pw} of {self.spec.name}; choose "
                f"pixel sizes divisible by {self.spec.space_factor * ph} and {self.spec.space_factor * pw}"
            )
        return Grid(frames, height // ph, width // pw)

    def rotary(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """cos and sin tables of a grid, (1, F*N, 1, head size) each, computed once per grid.

        They are diffusers' own but for the sign of sin at even places, which `blocks.rotate` wants and diffusers'
        attention does not read.
        """
        key = (grid, self.device)
        if key not in self._rotary:
            shape = (1, 1, grid.frames, grid.rows * self.spec.patch[1], grid.columns * self.spec.patch[2])
            with torch.no_grad():
                cos, sin = self.transformer.rope(torch.empty(shape, device="meta"))
                pairs = sin.unflatten(-1, (-1, 2))
                self._rotary[key] = cos, torch.stack((-pairs[..., 0], pairs[..., 1]), dim=-1).flatten(-2)
        return self._rotary[key]

    def embed(self, latents: Tensor) -> Tensor:
        """Patch embedding: (B, Z, F, h, w) -> (B, F*N, C) float32, the start of the residual stream."""
        weight = self.transformer.patch_embedding.weight
        tokens = self.transformer.patch_embedding(latents.to(weight.dtype))
        return tokens.flatten(2).transpose(1, 2).float().contiguous()

    def embed_text(self, text: TextStates) -> Tensor:
        """Text states through the transformer's text projection: (B, L, D) -> (B, L, C)."""
        embedder = self._need("transformer").condition_embedder.text_embedder  # the first step of every stream
        return embedder(text.states.to(embedder.linear_1.weight.dtype)).to(self.compute_dtype())

    def condition(self, sigma: Tensor, embedded_text: Tensor) -> Conditioning:
        """Timestep and text of one pass.

        Args:
            sigma: (B,) in [0, 1], or (B, F*N) for per-token timesteps (Wan2.2-TI2V).
            embedded_text: (B, L, C) from `embed_text`.
        """
        embedder = self.transformer.condition_embedder
        with torch.autocast(self.device.type, enabled=False):
            steps = embedder.timesteps_proj(sigma.flatten().float() * TIMESTEPS)
            steps = steps.unflatten(0, sigma.shape)
            hidden = embedder.time_embedder(steps.to(embedder.time_embedder.linear_1.weight.dtype))
            time = hidden.to(embedder.time_proj.weight.dtype)
            modulation = embedder.time_proj(embedder.act_fn(time)).unflatten(-1, (6, -1))
        return Conditioning(time, modulation, embedded_text, self.compute_dtype())

    def block(
        self,
        index: int,
        hidden: Tensor,
        conditioning: Conditioning,
        rotary: tuple[Tensor, Tensor],
        *,
        attend: Callable[[Tensor], Tensor] | None = None,
        residual: Callable[[Tensor], Tensor] | None = None,
        ffn: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Run block `index` of a stream (B, F*N, C); the openings are those of `blocks.run_block`."""

        unit = compiled(run_block, self.compiles) if self.compiles else run_block
        block = self.transformer.blocks[index]

        def run(stream: Tensor) -> Tensor:
            return unit(block, stream, conditioning, rotary, attend=attend, residual=residual, ffn=ffn)

        def again(stream: Tensor) -> Tensor:
            return checkpoint(run, stream, use_reentrant=False, preserve_rng_state=False)  # nothing is random

        call = again if self.gradient_checkpointing and torch.is_grad_enabled() else run
        return call(hidden) if self.sharding is None else self.sharding.target(index, call, hidden)

    @contextmanager
    def compiling(self, on: bool = True, *, backend: str = "inductor") -> Iterator[None]:
        """Inside the block, blocks run through torch.compile, or, with `on` false, as they are."""
        before, self.compiles = self.compiles, backend if on else None
        try:
            yield
        finally:
            self.compiles = before

    def head(self, hidden: Tensor, conditioning: Conditioning, grid: Grid) -> Tensor:
        """Output head: (B, F*N, C) -> velocity (B, Z, F, h, w) float32."""
        tokens = output_head(self.transformer, hidden, conditioning)
        _, ph, pw = self.spec.patch
        patches = tokens.unflatten(1, tuple(grid)).unflatten(-1, (ph, pw, -1))
        video = patches.permute(0, 6, 1, 2, 4, 3, 5)
        return video.flatten(5, 6).flatten(3, 4).float()

    # ---- whole passes

    def velocity(self, latents: Tensor, sigma: Tensor, text: TextStates) -> Tensor:
        """The plain frozen transformer.

        Args:
            latents: (B, Z, F, h, w) noisy latents.
            sigma: (B,) in [0, 1]; the timestep is 1000 sigma.
            text: states for the cross-attention.

        Returns:
            (B, Z, F, h, w) float32 velocity, noise - x0.
        """
        grid = self.grid(latents)
        conditioning = self.condition(sigma, self.embed_text(text))
        rotary = self.rotary(grid)
        hidden = self.embed(latents)
        for index in range(self.spec.blocks):
            hidden = self.block(index, hidden, conditioning, rotary)
        return self.head(hidden, conditioning, grid)

    @torch.no_grad()
    def source_features(
        self, latents: Tensor, text: TextStates, blocks: Sequence[int], *, per_frame: bool
    ) -> list[Tensor]:
        """The source stream: clean latents at timestep 0, no gradient.

        The last asked block's attention and feed-forward network are not computed: nothing would read them.

        Args:
            latents: (B, Z, F, h, w) clean source latents.
            text: (B, L, D) states for the cross-attention, or (1, L, D) where all sources read the same: its keys
                and values are then made once.
            blocks: ascending indices of the blocks whose features are wanted.
            per_frame: attend inside each frame alone (frames folded into the batch; as rotary positions are
                relative this is the single-frame case of training), else jointly over all frames.

        Returns:
            for each asked block (B, F, N, C): the features after norm1 and modulation.
        """
        self.source_passes += 1
        batch, _, frames = latents.shape[:3]
        embedded = self.embed_text(text)
        if per_frame and frames > 1:
            latents = latents.transpose(1, 2).flatten(0, 1).unsqueeze(2)
            if len(embedded) > 1:
                embedded = embedded.repeat_interleave(frames, dim=0)
        grid = self.grid(latents)
        conditioning = self.condition(latents.new_zeros(len(embedded)), embedded)
        rotary = self.rotary(grid)
        hidden = self.embed(latents)
        unit = compiled(source_block, self.compiles) if self.compiles else source_block
        wanted, last, found = set(blocks), max(blocks), []
        for index in range(last + 1):
            block = self.transformer.blocks[index]
            if index < last:
                run = partial(unit, block, conditioning=conditioning, rotary=rotary)
                x, hidden = run(hidden) if self.sharding is None else self.sharding.source(index, run, hidden)
            else:
                x = modulated_input(block, hidden, BlockModulation.of(block, conditioning), conditioning.dtype)
            if index in wanted:
                found.append(x.view(batch, frames, grid.per_frame, -1))
        return found

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
