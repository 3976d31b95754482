"""Pairs from a user's local folder: a table (see `ivedit.data.table`) and image files.

Images are opened one by one when they are needed; a broken one is skipped by name (`BadRecord`), not fatal. Some
rows are held out for validation: those that a `split` column says, else a share by hash of the source image, so
that the same image is never on both sides and the choice does not change when rows are reordered.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL import __version__ as pillow_version
from torch import Tensor

from ivedit.config import Config
from ivedit.config.buckets import size_name
from ivedit.data import images
from ivedit.data.place import Place, state_of
from ivedit.data.record import BadRecord, PairReader, PairRecord, PairTexts, as_float, register_reader
from ivedit.data.table import TableRow, read_table
from ivedit.errors import ConfigError

__all__ = ["FolderReader", "split_rows"]

log = logging.getLogger(__name__)

_VALIDATION = ("val", "validation", "valid")
_MOST_HELD_OUT = 0.1  # of the rows, where the table does not say


def split_rows(rows: Sequence[TableRow], split: str, count: int) -> list[TableRow]:
    """The rows of one split, in table order.

    Args:
        rows: The whole table.
        split: "train" or "val".
        count: Number of validation pairs wanted; without a `split` column at most a tenth of the rows are held out.

    Raises:
        ConfigError: one of the two splits would be empty.
    """
    if any(row.split for row in rows):
        held = [row for row in rows if (row.split or "").lower() in _VALIDATION][:count]
        training = [row for row in rows if (row.split or "train").lower() == "train"]
        if not held or not training:
            raise ConfigError(
                f"data.columns.split: the table has {len(training)} rows of split train and {len(held)} of split val; "
                "both need some"
            )
    else:
        wanted = min(count, max(1, int(len(rows) * _MOST_HELD_OUT)))
        hashed = {row.group: hashlib.sha256(row.group.encode()).digest() for row in rows}
        first = sorted(rows, key=lambda row: hashed[row.group])[:wanted]
        groups = {row.group for row in first}
        held = [row for row in rows if row.group in groups][:wanted]
        training = [row for row in rows if row.group not in groups]
        if not training:
            raise ConfigError(
                f"data.table: {len(rows)} rows with one source image cannot be divided into training and validation; "
                "add pairs, or a split column"
            )
    return training if split == "train" else held


class FolderReader(PairReader):
    """Pairs of one split of a folder.

    Args:
        folder: Directory that holds the table and the images.
        rows: The split's rows.
        height, width: Size that images are scaled (to cover) and centre-cropped to.
        unequal_size: "refuse" a pair whose images differ in size, or "resize" the target to the source's.
        seed, flip: As for every reader.
    """

    def __init__(
        self,
        folder: Path,
        rows: Sequence[TableRow],
        *,
        height: int,
        width: int,
        unequal_size: str = "refuse",
        seed: int = 0,
        flip: float = 0.0,
    ) -> None:
        super().__init__(seed=seed, flip=flip)
        self.root = folder.resolve()
        self.rows = list(rows)
        self.height = height
        self.width = width
        self.unequal_size = unequal_size

    def __len__(self) -> int:
        return len(self.rows)

    def texts(self, indices: Sequence[int]) -> list[PairTexts]:
        return [self.rows[i].texts for i in indices]

    def _name(self, row: TableRow, path: Any, what: str) -> str:
        return f"{row.texts.id} ({path.relative_to(self.root) if path else what})"

    def _open(self, row: TableRow, what: str, size: tuple[int, int]) -> Image.Image:
        """One of a pair's images, to be scaled to `size` (height, width)."""
        path = getattr(row, what)
        name = self._name(row, path, what)
        if path is None:
            raise BadRecord(name, f"the table names no {what} image")
        return images.read_image(path, name, "L" if what == "mask" else "RGB", size)

    def _images(self, row: TableRow, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
        """Both images, of equal full size, not yet cropped."""
        if not row.texts.instructions:
            raise BadRecord(row.texts.id, "has no instruction")
        source, target = self._open(row, "source", size), self._open(row, "target", size)
        return source, self._same_size(row, target, source, "target")

    def _same_size(self, row: TableRow, image: Image.Image, source: Image.Image, what: str) -> Image.Image:
        size, other = images.full_size(source)[::-1], images.full_size(image)[::-1]
        if other == size:
            return image
        if self.unequal_size == "refuse":
            raise BadRecord(
                row.texts.id,
                f"source is {size_name(size)} but {what} is {size_name(other)} (height x width); "
                "data.unequal_size=resize would scale it",
            )
        return image.resize(source.size, Image.Resampling.BOX if what == "mask" else Image.Resampling.BICUBIC)

    def load_pixels(self, index: int) -> tuple[Tensor, Tensor]:
        """As `PairReader.load_pixels`. The mask is not opened: nothing is trained with it, so a broken one, or one of
        another size, costs no pair. `load`, which gives it, refuses or scales it as it does the target.
        """
        size = self._size(index)
        source, target = self._images(self.rows[index], size)
        return images.pixels(source, *size), images.pixels(target, *size)

    def _size(self, index: int) -> tuple[int, int]:
        return self.size_of(index) or (self.height, self.width)

    def sizes(self, indices: Sequence[int]) -> list[tuple[int, int] | None]:
        files = [self.rows[i].source for i in indices]
        return [images.image_size(file) if isinstance(file, Path) else None for file in files]

    def load(self, index: int) -> PairRecord:
        row = self.rows[index]
        size = self._size(index)
        source, target = self._images(row, size)
        mask = None
        if row.mask is not None:
            mask = images.fit_mask(self._same_size(row, self._open(row, "mask", size), source, "mask"), *size)
        words = row.texts
        return PairRecord(
            id=words.id,
            source=as_float(images.pixels(source, *size)),
            target=as_float(images.pixels(target, *size)),
            instruction=words.instructions[0],
            source_caption=words.source_caption,
            target_caption=words.target_caption,
            mask=mask,
            operation=words.operation,
            alternatives=words.instructions,
        )

    def keys(self, indices: Sequence[int]) -> list[str]:
        return [
            # A row without instruction is refused, even where another row with the same images is not.
            f"folder {self._transform(i)} {_state(self.rows[i].source)} {_state(self.rows[i].target)} "
            f"{bool(self.rows[i].texts.instructions)}"
            for i in indices
        ]

    def _transform(self, index: int) -> str:
        height, width = self._size(index)
        return f"{images.TRANSFORM} {height}x{width} {self.unequal_size} pillow {pillow_version}"


def _state(path: Place | None) -> str:
    return state_of(path) if isinstance(path, Path) else "none"


@register_reader("folder")
def _from_config(cfg: Config, split: str, *, device: Any = "cpu") -> FolderReader:
    data = cfg.data
    if data.path is None:
        raise ConfigError("data.path: reader=folder needs the directory that holds the table and the images")
    folder = Path(data.path)
    table = read_table(folder, data.table, dict(data.columns))
    rows = split_rows(table, split, data.validation_pairs)
    wanted = data.pairs if split == "train" else data.validation_pairs
    if len(rows) < wanted:
        field = "data.pairs" if split == "train" else "data.validation_pairs"
        log.info("%s=%d, but %s offers %d: using those", field, wanted, data.table, len(rows))
    return FolderReader(
        folder,
        rows[:wanted],
        height=data.height,
        width=data.width,
        unequal_size=data.unequal_size,
        seed=cfg.seed,
        flip=data.flip if split == "train" else 0.0,
    )
