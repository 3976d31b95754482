"""Which files a set consists of: a directory, one file, or a hub name, by split.

Splits and configurations of a directory are found as HF `datasets` finds them (the README's YAML header, else names
such as `train-00000-of-00002.parquet`), for a local directory just as on the hub, so that a downloaded set and its
name mean the same. Files of the hub are fetched one by one, only as many as are needed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ivedit.data.preset import Preset, load_preset
from ivedit.errors import ConfigError, or_nearest

if TYPE_CHECKING:
    from ivedit.config import Config

__all__ = ["SetFiles", "SetPlan", "find_files", "set_plan"]

log = logging.getLogger(__name__)

_KINDS = {
    ".parquet": "parquet", ".tar": "tar", ".csv": "table", ".jsonl": "table", ".ndjson": "table", ".json": "table",
}  # fmt: skip
_BUILDERS = {"parquet": "parquet", "webdataset": "tar", "csv": "table", "json": "table"}
_VALIDATION = ("validation", "val", "valid", "dev")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass(frozen=True)
class SetPlan:
    """What is read, with the preset filled in.

    Attributes:
        place: Directory, file or hub name.
        subset: The set's configuration, or None.
        split, validation_split: Names; None for the latter: pairs are held out.
        columns: Column for each field of a pair.
    """

    place: str
    subset: str | None
    split: str
    validation_split: str | None
    columns: dict[str, str]


@dataclass(frozen=True)
class SetFiles:
    """The files of one split.

    Attributes:
        kind: parquet, tar or table.
        root: Directory that paths in tables and cells are relative to, and must stay inside.
        files: In the split's order, local paths or files of the hub.
        beside: Files of the set's validation split by its name, where there is one besides this split.
    """

    kind: str
    root: Path
    files: list[str]
    beside: tuple[str, list[str]] | None = None

    def say_unused(self) -> None:
        """Log that validation files lie there and are not used: for whoever holds out pairs of this split instead."""
        if self.beside is not None:
            split, files = self.beside
            more = f" and {len(files) - 1} more are" if len(files) > 1 else " is"
            log.info(
                "%s%s not used: some training pairs are held out for validation; data.validation_split=%s takes the "
                "validation pairs from there", PurePosixPath(files[0]).name, more, split,
            )  # fmt: skip

    def paths(self) -> Iterator[Path]:
        """Each file as a local path, fetched from the hub when it is asked for."""
        for file in self.files:
            yield _fetch(file) if file.startswith("hf://") else Path(file)


def set_plan(cfg: Config) -> SetPlan:
    """The settings of `data.*` over those of the preset.

    Raises:
        ConfigError: no preset of that name, or nowhere to read from.
    """
    data = cfg.data
    preset = load_preset(data.preset) if data.preset else Preset(name="none")
    place = data.path or preset.hub
    if place is None:
        raise ConfigError(f"data.path: preset {preset.name} needs it: the directory or file with the pairs")
    return SetPlan(
        place=place,
        subset=data.subset or preset.subset,
        split=data.split or preset.split or "train",
        validation_split=data.validation_split or preset.validation_split,
        columns={**preset.columns, **data.columns},
    )


def find_files(plan: SetPlan, split: str, table: str = "") -> SetFiles:
    """The files of a split.

    Args:
        plan: Where to look.
        split: Name of the split.
        table: A directory with this CSV or JSONL file is that table and nothing else.

    Raises:
        ConfigError: nothing there, a format that is not read, or no such split or configuration.
    """
    path = Path(plan.place).expanduser()
    if path.is_file():
        kind = _KINDS.get(path.suffix.lower())
        if kind is None:
            raise ConfigError(f"data.path: {path.name!r} must end in one of {', '.join(_KINDS)}")
        return SetFiles(kind, path.resolve().parent, [str(path.resolve())])
    if path.is_dir():
        if table and (path / table).is_file():
            return SetFiles("table", path.resolve(), [str(path.resolve() / table)])
        return _of_builder(plan, split, path.resolve())
    if not _HUB_NAME.fullmatch(plan.place):
        raise ConfigError(f"data.path: there is no file or directory {plan.place!r}, and no hub name looks like it")
    return _of_builder(plan, split, None)


def _of_builder(plan: SetPlan, split: str, root: Path | None) -> SetFiles:
    from datasets import load_dataset_builder

    try:
        builder = load_dataset_builder(str(root or plan.place), name=plan.subset)
    except Exception as problem:  # many kinds, from a missing configuration to a broken connection
        what = (str(problem).splitlines() or [type(problem).__name__])[0]
        if root and any(letter in str(root) for letter in "*?["):
            what += "; HF datasets takes * ? [ in its path for patterns: rename the directory"
        where = "" if root else "; it is neither a local file or directory nor a set on the hub that can be reached"
        raise ConfigError(f"data.path: {plan.place!r} cannot be read as a set: {what}{where}") from None
    kind = _BUILDERS.get(builder.name or "")
    if kind is None:
        raise ConfigError(
            f"data.path: {plan.place!r} holds files of the kind {builder.name}; parquet, WebDataset tar shards, "
            "CSV and JSONL are read"
        )
    by_split: dict[str, Any] = {str(name): list(files) for name, files in (builder.config.data_files or {}).items()}
    if split not in by_split:
        field = "data.split" if split == plan.split else "data.validation_split"
        raise ConfigError(f"{field}: {plan.place!r} has no split {split!r}: {or_nearest(split, by_split)}")
    files = [str(file) for file in by_split[split]]
    if root is None:
        strange = [file for file in files if not _HUB_FILE.fullmatch(file) or f"/{plan.place}@" not in file]
        if kind == "table":
            raise ConfigError(
                f"data.path: {plan.place!r} is a table with paths to images; fetch it whole (hf download {plan.place} "
                "--repo-type dataset --local-dir FOLDER) and set data.path=FOLDER"
            )
    else:
        strange = [file for file in files if not Path(file).resolve().is_relative_to(root)]
    if strange:
        raise ConfigError(f"data.path: {plan.place!r} names files outside itself, e.g. {strange[0]!r}")
    beside = next((name for name in by_split if name != split and name.lower() in _VALIDATION), None)
    return SetFiles(kind, root or Path("/"), files, None if beside is None else (beside, by_split[beside]))


def _fetch(file: str) -> Path:
    from huggingface_hub import hf_hub_download

    parts = _HUB_FILE.fullmatch(file)
    assert parts is not None, file
    try:
        return Path(hf_hub_download(
            parts["repo"], parts["path"], revision=parts["revision"], repo_type="dataset"
        ))  # fmt: skip
    except Exception as problem:  # network, rights, disk: the hub's client has a type for each
        what = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ConfigError(f"data.path: {parts['path']} of {parts['repo']} cannot be fetched: {what}") from None
