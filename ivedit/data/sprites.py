"""Pairs from the sprite world: one frame of a clip before and after an edit, made on the fly.

The set is a function of the index alone, not of the run's seed: repeated runs with other seeds see the same 13,000
pairs in another order, as they would with files. Pixels are rounded to 8 bits, so that pairs exported to a folder
and read back are the same to the bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ivedit.sprites as world
from ivedit.config import Config
from ivedit.data.record import PairReader, PairRecord, PairTexts, PixelBatch, as_float, register_reader
from ivedit.errors import ConfigError, or_nearest
from ivedit.sprites import draws
from ivedit.sprites.pairs import PairBatch, render_pairs, sample_pairs

__all__ = ["SET_SEED", "SpritesReader"]

SET_SEED = 0


@lru_cache(maxsize=1)
def _world_version() -> str:
    """Digest of the code that draws sprites, so that a cache made by other drawing code is never reused."""
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted(Path(world.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class SpritesReader(PairReader):
    """Pairs 0 to count - 1 of one split of the sprite world.

    Args:
        split: A split of `ivedit.sprites` ("train" and "val" in training).
        count: Number of pairs.
        operations: Only these kinds of edit; empty: all.
        size: Height and width in pixels.
        device: Where pixels are made; a GPU makes tens of thousands a second.
        seed, flip: As for every reader.

    Raises:
        ConfigError: an operation is not known.
    """

    def __init__(
        self,
        split: str,
        count: int,
        *,
        operations: Sequence[str] = (),
        size: int = 64,
        device: torch.device | str = "cpu",
        seed: int = 0,
        flip: float = 0.0,
    ) -> None:
        super().__init__(seed=seed, flip=flip)
        problems = [
            f"data.operations: {name!r} is not known; {or_nearest(name, world.OPERATIONS)}"
            for name in operations
            if name not in world.OPERATIONS
        ]
        if problems:
            raise ConfigError(problems)
        self.split = split
        self.count = count
        self.operations = tuple(operations)
        self.size = size
        self.device = torch.device(device)
        # A loader process must not touch the GPU of the process that started it.
        self.parallel = self.device.type == "cpu"

    def __len__(self) -> int:
        return self.count

    @cached_property
    def pairs(self) -> PairBatch:
        """All pairs as scenes and words, without pixels."""
        index = torch.arange(self.count, device=self.device)
        return sample_pairs(SET_SEED, index, self.split, self.operations or None)

    @cached_property
    def frames(self) -> Tensor:
        """(count,) which frame of its clip each pair shows."""
        index = torch.arange(self.count, device=self.device)
        return draws.integers(draws.stream(SET_SEED, index, f"frame/{self.split}"), "frame", world.FRAMES)

    def texts(self, indices: Sequence[int]) -> list[PairTexts]:
        pairs = self.pairs
        kinds = pairs.operation.tolist()
        return [
            PairTexts(
                id=f"{self.split}-{i:06d}",
                instructions=(pairs.instruction[i],),
                source_caption=pairs.source_caption[i],
                target_caption=pairs.target_caption[i],
                operation=world.OPERATIONS[kinds[i]],
            )
            for i in indices
        ]

    def _bytes(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Source and target (B, 3, H, W) uint8 on the reader's device."""
        rows = torch.as_tensor(list(indices), dtype=torch.long)
        pairs = self.pairs[rows]
        frames = self.frames[rows.to(self.device)][:, None]
        source, target, _ = render_pairs(pairs, frames, self.size)
        return _round(source[:, 0]), _round(target[:, 0])

    def load_batch(self, indices: Sequence[int]) -> PixelBatch:
        source, target = self._bytes(indices)
        return PixelBatch([int(i) for i in indices], source, target, [])

    def load(self, index: int) -> PairRecord:
        if not 0 <= index < self.count:
            raise IndexError(f"pair {index} of {self.count}")
        source, target = (pixels[0].cpu() for pixels in self._bytes([index]))
        words = self.texts([index])[0]
        return PairRecord(
            id=words.id,
            source=as_float(source),
            target=as_float(target),
            instruction=words.instructions[0],
            source_caption=words.source_caption,
            target_caption=words.target_caption,
            mask=(source != target).any(0, keepdim=True).float(),
            operation=words.operation,
        )

    def keys(self, indices: Sequence[int]) -> list[str]:
        whole = f"{_world_version()} {SET_SEED} {self.split} {self.operations} {self.size} {self.device.type}"
        return [f"sprites {whole} {i}" for i in indices]


def _round(pixels: Tensor) -> Tensor:
    return (pixels * 255).round().to(torch.uint8)


@register_reader("sprites")
def _from_config(cfg: Config, split: str, *, device: Any = "cpu") -> SpritesReader:
    if cfg.data.height != cfg.data.width:
        raise ConfigError(
            f"data.height={cfg.data.height} and data.width={cfg.data.width}: sprites are square, set both alike"
        )
    return SpritesReader(
        split,
        cfg.data.pairs if split == "train" else cfg.data.validation_pairs,
        operations=list(cfg.data.operations),
        size=cfg.data.height,
        device=device,
        seed=cfg.seed,
        flip=cfg.data.flip if split == "train" else 0.0,
    )
