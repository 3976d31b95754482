"""Rules about image pairs (see `ivedit.config.check`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ivedit.config.buckets import bucket_sizes
from ivedit.config.rules import OPERATIONS, PAIR_FIELDS, PRESETS, READERS, changed, rule, unknown
from ivedit.config.schema import Config


@rule("data.reader", "plugins")
def _reader_is_known(c: Config) -> Iterator[str]:
    if not c.plugins:
        for problem in unknown([c.data.reader], READERS, "data reader"):
            yield problem + ", or list the module that registers it in plugins"


@rule("data.reader", "data.path")
def _folder_needs_a_path(c: Config) -> Iterator[str]:
    if c.data.reader == "folder" and not c.data.path:
        yield "the folder reader needs data.path=FOLDER, the directory with the table and the images"
    if c.data.reader == "folder" and c.data.path and not Path(c.data.path).expanduser().is_dir():
        path = Path(c.data.path)
        yield f"{c.data.path} is not a directory" + (
            f"; write data.path={path.parent} data.table={path.name}" if path.expanduser().is_file() else ""
        )
    if c.data.reader == "sprites" and c.data.path:
        yield "sprites are drawn, not read; set data.reader=folder or leave data.path out"


@rule("data.reader", "data.path", "data.table")
def _table_exists(c: Config) -> Iterator[str]:
    if c.data.reader == "folder" and c.data.path:
        base = Path(c.data.path).expanduser()
        if base.is_dir() and not (base / c.data.table).is_file():
            found = sorted(p.name for p in base.iterdir() if p.suffix in (".csv", ".jsonl"))
            yield f"the folder has no such table; it has {', '.join(found) or 'no .csv or .jsonl file'}"


@rule("data.reader", "data.columns")
def _columns_map_a_table(c: Config) -> Iterator[str]:
    if c.data.reader == "sprites" and c.data.columns:
        yield "sprites have no table; set data.reader=folder or leave data.columns out"
    yield from unknown(list(c.data.columns), PAIR_FIELDS, "field of a pair called")


@rule("data.reader", "data.path", "data.preset")
def _set_has_a_place(c: Config) -> Iterator[str]:
    if c.data.reader == "set" and not c.data.path and not c.data.preset:
        yield (
            "the set reader needs data.path=FOLDER, FILE or a hub name, or data.preset=NAME of a set on the hub "
            f"({', '.join(PRESETS)})"
        )
    place = c.data.path or "."
    if c.data.reader == "set" and not (Path(place).expanduser().exists() or re.fullmatch(r"[\w.-]+/[\w.-]+", place)):
        yield "there is no such file or directory, and a set on the hub is called owner/name"


@rule("data.preset")
def _preset_exists(c: Config) -> Iterator[str]:
    name = c.data.preset
    if name is None:
        return
    if name.endswith((".yaml", ".yml")):
        if not Path(name).expanduser().is_file():
            yield f"there is no file {name}"
    else:
        yield from unknown([name], PRESETS, "preset called")


@rule(
    "data.reader", "data.preset", "data.subset", "data.split", "data.validation_split", "data.min_scores",
    "data.frame", "data.streaming",
)  # fmt: skip
def _settings_of_sets(c: Config) -> Iterator[str]:
    if c.data.reader in ("folder", "sprites"):
        for name in ("preset", "subset", "split", "validation_split", "min_scores", "frame", "streaming"):
            if changed(c, f"data.{name}"):
                yield f"data.{name} belongs to data.reader=set; set that, or leave it out"


@rule("data.streaming", "data.frame", "data.buckets")
def _streams_are_plain(c: Config) -> Iterator[str]:
    if c.data.streaming and c.data.frame != "none":
        yield "videos are not streamed; set data.streaming=false, or leave data.frame out"
    if c.data.streaming and c.data.buckets:
        yield "batches of one size cannot be planned for a stream; set data.streaming=false, or leave data.buckets out"


@rule("data.streaming", "data.cache", "text.gate")
def _streams_come_once(c: Config) -> Iterator[str]:
    if not c.data.streaming:
        return
    if c.data.cache != "none":
        yield (
            "a stream is encoded as it comes and nothing of it is kept: set data.cache=none, or data.streaming=false "
            "to fetch the files and encode each pair once"
        )
    if c.text.gate == "shuffled":
        yield "a shuffled gate needs the texts of all pairs, which a stream does not have; set data.streaming=false"


@rule("data.operations")
def _operations_exist(c: Config) -> Iterator[str]:
    yield from unknown(c.data.operations, OPERATIONS, "edit operation")


@rule("data.operations", "data.reader")
def _operations_are_of_sprites(c: Config) -> Iterator[str]:
    if c.data.operations and c.data.reader in ("folder", "set"):
        yield f"operations choose sprite edits; a {c.data.reader} is trained on whole, so leave data.operations out"


@rule("data.height")
def _height_divides(c: Config) -> Iterator[str]:
    yield from _divides(c.data.height, "data.height")


@rule("data.width")
def _width_divides(c: Config) -> Iterator[str]:
    yield from _divides(c.data.width, "data.width")


@rule("data.reader", "data.height", "data.width")
def _sprites_are_square(c: Config) -> Iterator[str]:
    sizes = c.data.height, c.data.width
    if c.data.reader == "sprites" and sizes[0] != sizes[1] and not any(size % 16 for size in sizes):
        yield "sprites are square; set both alike"


@rule("data.buckets")
def _buckets_are_sizes(c: Config) -> Iterator[str]:
    try:
        bucket_sizes(c.data.buckets)
    except ValueError as problem:
        yield str(problem)


@rule("data.reader", "data.buckets")
def _sprites_have_one_size(c: Config) -> Iterator[str]:
    if c.data.reader == "sprites" and c.data.buckets:
        yield "sprites are all drawn at data.height x data.width; leave data.buckets out"


def _divides(size: int, key: str) -> Iterator[str]:
    if size % 16:
        yield f"Wan needs a multiple of 16; the nearest is {key}={max(16, round(size / 16) * 16)}"


@rule("data.pairs", "train.batch_size", "train.accumulate", "train.devices", "train.nodes")
def _one_full_step(c: Config) -> Iterator[str]:
    t = c.train
    step = t.batch_size * t.accumulate * t.devices * t.nodes
    if c.task == "edit" and t.epochs > 0 and t.max_steps != 0 and c.data.pairs < step:
        yield f"one optimiser step takes {step} pairs, more than there are; lower train.batch_size"


@rule("data.null_edits")
def _some_real_edits(c: Config) -> Iterator[str]:
    if c.data.null_edits == 1:
        yield "with only null edits nothing but copying is trained; use a share below 1, e.g. 0.1"


@rule("data.cache", "data.cache_dir")
def _cache_has_a_place(c: Config) -> Iterator[str]:
    if c.data.cache == "disk" and not c.data.cache_dir:
        yield "a cache on disk needs a folder: data.cache_dir=cache"


# -- editor and texts ---------------------------------------------------------------------------------------------
