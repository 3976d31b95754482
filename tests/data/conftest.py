"""Toy encoders (exact, fast, no weights) and folders of real photographs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ivedit.config import Config
from ivedit.data.text import TextStates

from .setfiles import pair_rows

LENGTH, WIDTH = 12, 6


class ToyEncoders:
    """Encodes pixels by folding 8x8 squares into channels, and words by their letters; counts what it encoded."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.images = 0
        self.texts: list[str] = []

    @property
    def fingerprint(self) -> str:
        return f"toy {self.scale}"

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.ndim == 5 and pixels.shape[1:3] == (1, 3) and pixels.dtype == torch.float32
        self.images += len(pixels)
        return self.scale * torch.nn.functional.pixel_unshuffle(pixels[:, 0], 8)[:, :, None]

    def encode_text(self, texts: list[str]) -> TextStates:
        self.texts += texts
        states = torch.zeros(len(texts), LENGTH, WIDTH)
        mask = torch.zeros(len(texts), LENGTH, dtype=torch.bool)
        for row, text in enumerate(texts):
            for column, word in enumerate([*text.split()[: LENGTH - 1], "</s>"]):
                letters = [(ord(letter) % 31) / 31 for letter in word[:WIDTH].ljust(WIDTH)]
                states[row, column] = self.scale * torch.tensor(letters)
                mask[row, column] = True
        return TextStates(states, mask)


@pytest.fixture
def encoders() -> ToyEncoders:
    return ToyEncoders()


def sprite_config(**data: Any) -> Config:
    """A small sprite set."""
    cfg = Config()
    cfg.data.pairs, cfg.data.validation_pairs, cfg.train.batch_size = 24, 6, 4
    for name, value in data.items():
        setattr(cfg.data, name, value)
    return cfg


@pytest.fixture
def config() -> Callable[..., Config]:
    return sprite_config


def photograph(name: str) -> Image.Image:
    import skimage.data

    return Image.fromarray(getattr(skimage.data, name)())


class PhotoFolder:
    """A folder of pairs cut from scikit-image's photographs: the target is the source in grey.

    ``sizes`` (width, height) are taken in turn.
    """

    def __init__(self, root: Path, pairs: int = 12, *sizes: tuple[int, int]) -> None:
        self.root = root
        (root / "bilder").mkdir(parents=True)
        photo = np.asarray(photograph("astronaut"))
        self.rows: list[dict[str, Any]] = []
        for i in range(pairs):
            top, left, size = 20 * i % 400, 15 * i % 400, (sizes or ((96, 64),))[i % max(1, len(sizes))]
            source = Image.fromarray(photo[top : top + size[1], left : left + size[0]])
            source.save(root / f"bilder/{i}.png")
            source.convert("L").convert("RGB").save(root / f"bilder/{i} gräu.png")
            self.rows.append(
                {"id": f"p{i}", "source": f"bilder/{i}.png", "target": f"bilder/{i} gräu.png",
                 "instruction": f"make number {i} grey"}
            )

    def write(self, name: str = "pairs.jsonl") -> Path:
        path = self.root / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows), encoding="utf-8")
        return path

    def config(self, **data: Any) -> Config:
        self.write()
        cfg = sprite_config(reader="folder", path=str(self.root), table="pairs.jsonl", height=32, width=48)
        cfg.data.validation_pairs = 2
        for name, value in data.items():
            setattr(cfg.data, name, value)
        return cfg


@pytest.fixture
def photos(tmp_path: Path) -> PhotoFolder:
    return PhotoFolder(tmp_path / "fotos")


@pytest.fixture
def set_rows(photos: PhotoFolder) -> list[dict[str, Any]]:
    """Twelve pairs as a set's rows, images as bytes: two of them marked for validation, and a score (one has none)."""
    splits = ["val", *["train"] * 4, "val", *["train"] * 6]
    for number, (row, split) in enumerate(zip(photos.rows, splits, strict=True)):
        row["split"], row["score"] = split, number / 2 if number != 3 else None
    return pair_rows(photos)


@pytest.fixture
def set_config(photos: PhotoFolder, tmp_path: Path) -> Callable[..., Config]:
    """Settings that read the set at `place` as the folder of `photos` is read."""

    def make(place: Path | str, **data: Any) -> Config:
        return photos.config(reader="set", path=str(place), cache_dir=str(tmp_path / "cache"), **data)

    return make
