"""The frozen backbone: a Wan text-to-video transformer with its VAE and text encoder.

`Backbone` gives the two streams of the method. `source_features` runs clean source latents at timestep 0 and keeps
what each block's self-attention reads; `embed`, `condition`, `block`, `head` are the steps of the target stream, so
that an editor can run it with its own openings. `velocity` is the plain frozen transformer. Nothing here is ever
trained, and nothing synchronises with the host: a step can be captured as a CUDA graph after one warm-up call.
Its parts, and how they are loaded and used for pixels and words, are in `ivedit.backbone.frozen`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

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
from ivedit.backbone.frozen import FrozenPipeline
from ivedit.backbone.spec import Grid
from ivedit.data.text import TextStates
from ivedit.errors import IveditError

__all__ = ["Backbone"]

TIMESTEPS = 1000.0


class Backbone(FrozenPipeline):
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

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks."""
        return self._have("transformer").blocks

    def compute_dtype(self) -> torch.dtype:
        """Type of the blocks' matrix products: autocast's where it is on, else the storage type."""
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return self._have("transformer").patch_embedding.weight.dtype

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
