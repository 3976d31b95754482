"""What is evaluated on: clips and single frames of the sprite world with their true edits, in batches.

The sets do not depend on a run's seed: every run is measured on the same clips, so their rows can be paired. Single
frames ("pairs") are drawn as `ivedit.data.sprites` draws them, from the training pairs themselves or from the scenes
of the held-out clips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ivedit.config.schema import Config
from ivedit.data.sprites import SET_SEED, SpritesReader
from ivedit.errors import ConfigError
from ivedit.evaluation.metrics import Reference, start_source_flow
from ivedit.flow import clip_seeds
from ivedit.sprites import FRAMES, OPERATIONS, PairBatch, SceneBatch, render_pairs, sample_pairs

__all__ = [
    "ClipBatch", "ClipSet", "Latents", "configured_clips", "held_out_clips", "held_out_frames", "training_frames",
]  # fmt: skip


@dataclass
class ClipBatch:
    """B clips (or single frames, T = 1) with everything that an editor and a metric want to know.

    Attributes:
        reference: Pixels (B, T, 3, H, W), masks, clip numbers.
        instructions: B strings.
        other_instructions: B strings, those of the next clips of the set, for the control ``text.gate=shuffled``.
        target_captions: B strings.
        operations: B names out of `ivedit.sprites.OPERATIONS`.
        needs_motion: (B,) bool, the edit asks for a motion that no single frame shows.
        target_scenes: The true edits as scenes, for reading back what is in them.
        frames: (T,) or (B, T) frame numbers of the pixels.
    """

    reference: Reference
    instructions: list[str]
    other_instructions: list[str]
    target_captions: list[str]
    operations: list[str]
    needs_motion: Tensor
    target_scenes: SceneBatch
    frames: Tensor

    def __len__(self) -> int:
        return len(self.operations)

    def seeds(self, seed: int) -> list[int]:
        """Noise seeds, a function of ``seed`` and the clip number: the same for every row and batch size."""
        assert self.reference.clips is not None
        return clip_seeds(seed, self.reference.clips.tolist())


class Latents:
    """Latents of a batch's sources and true edits, each encoded when first asked for and then kept.

    Args:
        encode: pixels (B, T, 3, H, W) -> latents (B, Z, F, h, w).
        reference: The pixels.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], reference: Reference) -> None:
        self._encode = encode
        self._reference: Reference | None = reference

    @cached_property
    def source(self) -> Tensor:
        """(B, Z, F, h, w) of the sources."""
        return self._encode(self._pixels().source)

    @cached_property
    def target(self) -> Tensor:
        """(B, Z, F, h, w) of the true edits."""
        return self._encode(self._pixels().target)

    def _pixels(self) -> Reference:
        if self._reference is None:
            raise ValueError("the pixels of these latents have been forgotten")
        return self._reference

    def keep_latents_only(self) -> Latents:
        """Encode both if need be and forget the pixels, which are far larger."""
        _ = self.source, self.target
        self._reference = None
        return self


@dataclass(frozen=True)
class ClipSet:
    """A set of clips, kept as scenes and words; pixels are made batch by batch.

    Attributes:
        name: For ids, such as ``test``.
        pairs: The scenes, instructions and captions.
        frames: (T,) frame numbers of every clip, or (M, 1) one for each clip.
        size: Height and width in pixels.
    """

    name: str
    pairs: PairBatch
    frames: Tensor
    size: int = 64

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def operations(self) -> list[str]:
        """Operation of each clip."""
        return [OPERATIONS[i] for i in self.pairs.operation.tolist()]

    @property
    def ids(self) -> list[str]:
        """A name for each clip, such as ``test-000012``."""
        return [f"{self.name}-{i:06d}" for i in range(len(self))]

    def take(self, rows: Sequence[int]) -> ClipSet:
        """Some of the clips, which keep neither their numbers nor their ids."""
        index = torch.as_tensor(list(rows), dtype=torch.long, device=self.pairs.operation.device)
        frames = self.frames if self.frames.ndim == 1 else self.frames[index.to(self.frames.device)]
        return ClipSet(self.name, self.pairs[index], frames, self.size)

    def batches(self, size: int, *, flow: bool = False) -> Iterator[ClipBatch]:
        """Batches of at most ``size`` clips, in order; ``flow``: start the sources' optical flow in the background."""
        for start in range(0, len(self), size):
            rows = torch.arange(start, min(start + size, len(self)), device=self.pairs.operation.device)
            yield self._render(rows, flow)

    def _render(self, rows: Tensor, flow: bool) -> ClipBatch:
        pairs = self.pairs[rows]
        frames = self.frames if self.frames.ndim == 1 else self.frames[rows.to(self.frames.device)]
        source, target, _ = render_pairs(pairs, frames, self.size)
        # to 8 bits, as every image and video file is; the mask follows
        source, target = ((pixels * 255).round() / 255 for pixels in (source, target))
        mask = (source != target).any(dim=2, keepdim=True)
        reference = Reference(
            source, target, mask, rows, start_source_flow(source) if flow else None,
            captions=pairs.target_caption, source_captions=pairs.source_caption,
        )  # fmt: skip
        return ClipBatch(
            reference=reference,
            instructions=pairs.instruction,
            other_instructions=[self.pairs.instruction[(i + 1) % len(self)] for i in rows.tolist()],
            target_captions=pairs.target_caption,
            operations=[OPERATIONS[i] for i in pairs.operation.tolist()],
            needs_motion=pairs.needs_motion,
            target_scenes=pairs.target,
            frames=frames,
        )


def _balanced_count(count: int, operations: Sequence[str]) -> int:
    """``count``, rounded up so that every operation comes equally often (fewer clips than operations: as they are)."""
    kinds = len(operations) or len(OPERATIONS)
    return count if count < kinds else -(-count // kinds) * kinds


def held_out_clips(
    split: str,
    count: int,
    *,
    operations: Sequence[str] = (),
    frames: int = FRAMES,
    size: int = 64,
    device: torch.device | str = "cpu",
) -> ClipSet:
    """At least ``count`` clips of a held-out split, equal numbers per operation.

    Args:
        split: As in ``evaluation.split``.
        count: Clips; rounded up to a multiple of the number of operations.
        operations: Only these; empty: all.
        frames: Frames of a clip, from its first, at most `FRAMES`.
        size: Height and width in pixels.
        device: Where scenes and pixels are made; they are the same on every device.

    Raises:
        ValueError: more frames than a clip has, or an unknown split or operation.
    """
    if not 1 <= frames <= FRAMES:
        raise ValueError(f"sprite clips have {FRAMES} frames, so evaluation.frames={frames} is out of range")
    index = torch.arange(_balanced_count(count, operations), device=device)
    pairs = sample_pairs(SET_SEED, index, split, list(operations) or None, balanced=True)
    return ClipSet(split, pairs, torch.arange(frames, device=device), size)


def configured_clips(cfg: Config, backbone: Any) -> ClipSet:
    """The held-out clips that ``evaluation.*`` and ``data.*`` name, on the backbone's device.

    Raises:
        ConfigError: a number of frames that the VAE cannot pack.
    """
    wanted, factor = cfg.evaluation, backbone.spec.time_factor
    if (wanted.frames - 1) % factor:
        raise ConfigError(
            f"evaluation.frames: {wanted.frames} is not 1 + a multiple of {factor}, the frames that the VAE "
            f"packs into one latent; use {wanted.frames - (wanted.frames - 1) % factor}"
        )
    return held_out_clips(
        wanted.split,
        wanted.clips,
        operations=list(cfg.data.operations),
        frames=wanted.frames,
        size=cfg.data.height,
        device=backbone.device,
    )


def held_out_frames(clips: ClipSet, count: int) -> ClipSet:
    """One frame of each of the first ``count`` clips (rounded up to equal numbers per operation): unseen pairs.

    The scenes and edits are those of the clips, so that success on images and on video can be paired.
    """
    count = min(_balanced_count(count, sorted(set(clips.operations))), len(clips))
    drawn = SpritesReader(clips.name, count, device=clips.pairs.operation.device).frames[:, None]
    chosen = clips.take(range(count))
    return ClipSet(f"{clips.name}-frame", chosen.pairs, drawn.clamp_max(int(clips.frames.max())), clips.size)


def training_frames(
    trained: int, count: int, *, operations: Sequence[str] = (), size: int = 64, device: torch.device | str = "cpu"
) -> ClipSet:
    """About ``count`` of the pairs that the run trained on, as equal in numbers per operation as they allow.

    Args:
        trained: Number of training pairs (``data.pairs``).
        count: Pairs wanted.
        operations: As in ``data.operations``.
        size: Height and width in pixels.
        device: Where they are made.
    """
    looked_at = min(trained, 4 * count)  # drawn at random, so a quarter of them hold enough of each operation
    reader = SpritesReader("train", looked_at, operations=operations, size=size, device=device)
    whole = ClipSet("train", reader.pairs, reader.frames[:, None], size)
    kinds = list(operations) or list(OPERATIONS)
    share = -(-count // len(kinds))
    found = [[i for i, name in enumerate(whole.operations) if name == kind][:share] for kind in kinds]
    return whole.take(sorted(i for rows in found for i in rows)[: share * len(kinds)])
