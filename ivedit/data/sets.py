"""Pairs from the sets people have: parquet with image bytes, WebDataset tar shards, CSV and JSONL tables, hub names.

Everything is read by place (file, row group and row, or offset), so a set behaves as a folder does: any pair at any
time, an order that is a pure function of (seed, epoch), exact resuming, and ranks that share the pairs without
speaking to each other. Broken pairs are skipped by name, such as `train-00000.parquet row 17`.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from ivedit.config import Config
from ivedit.data import frames, images
from ivedit.data.folder import FolderReader, split_rows
from ivedit.data.place import Cell, Member, Place, state_of
from ivedit.data.record import BadRecord, PairRecord, register_reader
from ivedit.data.setfiles import find_files, set_plan
from ivedit.data.setrows import Scores, position, read_set
from ivedit.data.table import TableRow, inside, some
from ivedit.errors import ConfigError

if TYPE_CHECKING:
    from ivedit.data.parquet import Cells

__all__ = ["SetReader", "refuse_videos"]

log = logging.getLogger(__name__)


class SetReader(FolderReader):
    """Pairs of one split of a set.

    Args:
        root: What paths are relative to and must stay inside.
        rows: The split's rows.
        cells: Reads the cells of parquet files; None where there are none.
        frame: Which frame of a video (`data.frame`).
        others: As for `FolderReader`.
    """

    def __init__(
        self, root: Path, rows: Sequence[TableRow], *, cells: Cells | None = None, frame: str = "none", **others: Any
    ) -> None:
        super().__init__(root, rows, **others)
        self.cells = cells
        self.frame = frame
        self._counts: dict[Path, int] = {}

    def _name(self, row: TableRow, path: Place | None, what: str) -> str:
        where = position(path, self.root)
        short = isinstance(path, (Cell, Member)) and where.startswith(row.texts.id)
        return f"{row.texts.id} ({what})" if short or not where else f"{row.texts.id} ({where}, {what})"

    def _open(self, row: TableRow, what: str, size: tuple[int, int]) -> Image.Image:
        place: Place | None = getattr(row, what)
        name = self._name(row, place, what)
        mode = "L" if what == "mask" else "RGB"
        if place is None:
            raise BadRecord(name, f"the set names no {what} image")
        if frames.is_video(place):
            assert isinstance(place, Path)
            return frames.read_frame(place, self._frame(row), name).convert(mode)
        file = self._file(place, name)
        if isinstance(file, Path):
            return images.read_image(file, name, mode, size)
        return images.decode_image(file, name, mode, size)

    def _file(self, place: Place, name: str) -> Path | BinaryIO:
        """What to decode: a file, or the bytes of one."""
        if isinstance(place, Path):
            return place
        if isinstance(place, Member):
            from ivedit.data.tar import read_member

            try:
                data: Any = read_member(place)
            except OSError as problem:
                raise BadRecord(name, f"cannot be read ({problem.strerror or problem})") from None
        elif isinstance(place, Cell):
            data, beside = self._cell(place, name)
            if data is None and beside:
                path = inside(self.root, beside)
                if path is None:
                    raise BadRecord(name, f"its path {beside!r} leads out of data.path")
                return path
        else:
            data = place
        if data is None or len(data) == 0:
            raise BadRecord(name, "is empty (0 bytes)")
        return io.BytesIO(data)

    def _cell(self, cell: Cell, name: str) -> tuple[Any, str | None]:
        import pyarrow as pa

        assert self.cells is not None, "a set with parquet files has cells"
        try:
            return self.cells.read(cell)
        except (OSError, pa.ArrowException) as problem:
            what = (str(problem).splitlines() or [type(problem).__name__])[0]
            raise BadRecord(name, f"cannot be read ({what})") from None

    def _frame(self, row: TableRow) -> int:
        """The frame of a pair of videos: one number, for both."""
        counts = []
        for what in ("source", "target"):
            place = getattr(row, what)
            if frames.is_video(place):
                if place not in self._counts:
                    self._counts[place] = frames.count_frames(place, self._name(row, place, what))
                counts.append(self._counts[place])
        return frames.frame_number(self.frame, min(counts), self.seed, row.texts.id)

    def load(self, index: int) -> PairRecord:
        row = self.rows[index]
        if isinstance(row.mask, Cell):
            data, beside = self._cell(row.mask, row.texts.id)
            if data is None and beside is None:
                self.rows[index] = replace(row, mask=None)  # a null: this edit has none
        return super().load(index)

    def sizes(self, indices: Sequence[int]) -> list[tuple[int, int] | None]:
        return [self._header(self.rows[i]) for i in indices]

    def _header(self, row: TableRow) -> tuple[int, int] | None:
        if row.source is None:
            return None
        try:
            if frames.is_video(row.source):
                image = self._open(row, "source", (self.height, self.width))
                return image.height, image.width
            return images.image_size(self._file(row.source, row.texts.id))
        except BadRecord:  # whoever reads its pixels says what is wrong with it
            return None

    def keys(self, indices: Sequence[int]) -> list[str]:
        states: dict[Path, str] = {}  # a file holds many pairs

        def state(file: Path) -> str:
            if file not in states:
                states[file] = state_of(file)
            return states[file]

        def key(place: Place | None, row: TableRow) -> str:
            if isinstance(place, Cell):
                return f"{state(place.file)} row {place.number} {place.column}"
            if isinstance(place, Member):
                return f"{state(place.file)} {place.offset} {place.size}"
            if isinstance(place, Path):
                drawn = f" {self.seed} {row.texts.id}" if self.frame == "random" else ""
                return state(place) + (f" frame {self.frame}{drawn}" if frames.is_video(place) else "")
            return "none"

        found = []
        for i in indices:
            row = self.rows[i]
            found.append(
                f"set {self._transform(i)} {key(row.source, row)} {key(row.target, row)} {bool(row.texts.instructions)}"
            )
        return found


def refuse_videos(rows: Sequence[TableRow], frame: str) -> None:
    """ConfigError when rows name videos and no frame of them is asked for."""
    named = [row.texts.id for row in rows if frames.is_video(row.source) or frames.is_video(row.target)]
    if named and frame == "none":
        raise ConfigError(
            f"data.frame: {len(named)} of {len(rows)} pairs are videos ({some(named)}), and training takes images: set "
            "data.frame=first, middle or random to take one frame of each"
        )


@register_reader("set")
def _from_config(cfg: Config, split: str, *, device: Any = "cpu") -> SetReader:
    data = cfg.data
    plan = set_plan(cfg)
    held_out = plan.validation_split is None
    wanted = data.pairs if split == "train" else data.validation_pairs
    name = plan.validation_split if split != "train" and plan.validation_split is not None else plan.split
    files = find_files(plan, name, data.table)
    most = data.pairs + data.validation_pairs if held_out else wanted
    if held_out and split == "train":
        files.say_unused()
    rows = read_set(files, plan.columns, Scores(data.min_scores), most)
    if held_out:
        # Without a `split` column only these rows are looked at, so that a few files of a large set are enough.
        divided = any(row.split for row in rows)
        rows = split_rows(rows if divided else rows[:most], split, data.validation_pairs)
    if len(rows) < wanted:
        field = "data.pairs" if split == "train" else "data.validation_pairs"
        log.info("%s=%d, but %s offers %d: using those", field, wanted, plan.place, len(rows))
    rows = rows[:wanted]
    refuse_videos(rows, data.frame)
    cells = None
    if any(isinstance(row.source, Cell) or isinstance(row.target, Cell) for row in rows):
        from ivedit.data.parquet import Cells

        # Without a cache of latents, pairs are read in every epoch's own order.
        cells = Cells(Path(data.cache_dir) / "unpacked", shuffled=data.cache == "none")
    return SetReader(
        files.root, rows, cells=cells, frame=data.frame, height=data.height, width=data.width,
        unequal_size=data.unequal_size, seed=cfg.seed, flip=data.flip if split == "train" else 0.0,
    )  # fmt: skip
