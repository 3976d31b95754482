"""All that is known about a trained editor: from its own file, and from the run folder around it where there is one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivedit.editor import is_hub_name, read_editor_header, resolve_editor_file
from ivedit.errors import ConfigError
from ivedit.exporting.scrub import public_config
from ivedit.recording import config_hash
from ivedit.runfolder import RunFolder, is_run_folder

__all__ = ["CARD", "MARK", "Record", "read_run"]

CARD = "README.md"
MARK = "<!-- Written by `python -m ivedit.export` -->"
"""Stands in every card, so that an exported folder is known again."""

_STRIPS, _STRIPS_BYTES = 4, 4_000_000


@dataclass(frozen=True)
class Record:
    """A trained editor and its history; what may not be shown to everybody is not in it, but for `file` and `strips`.

    Attributes:
        file: its weights.
        header: of that file.
        config: parts of the run's configuration that say how it was made (`public_config`).
        config_hash: of the whole configuration, as reports show it; None where it is not known.
        backbone: the path that it was trained with.
        results: what the run's evaluation found; None: it was not evaluated.
        environment: environment.json; empty where it is not known.
        strips: pictures of held-out edits.
    """

    file: Path
    header: dict[str, Any]
    config: dict[str, Any]
    config_hash: str | None
    backbone: str
    results: dict[str, Any] | None
    environment: dict[str, Any]
    strips: list[Path]

    @property
    def sprites(self) -> bool:
        """Whether it was trained on the procedural world, whose pictures are nobody's."""
        return (self.config.get("data") or {}).get("reader", "sprites") == "sprites"

    def base_model(self, given: str | None = None) -> str | None:
        """Hub name of the backbone, as far as it is known: ``given``, or what the run was told."""
        from ivedit.backbone.published import published, published_names

        name = given or self.backbone
        if name in published_names():
            return published(name).hub
        return name if given or (is_hub_name(name) and not Path(name).expanduser().is_dir()) else None


def read_run(reference: str | Path) -> Record:
    """What is known about an editor.

    Args:
        reference: a run folder, an editor's file, or ``shipped``.

    Raises:
        ConfigError: an exported folder: its card cannot be made from it again.
        IveditError: there is no trained editor.
    """
    if is_export(Path(reference).expanduser()):
        raise ConfigError(f"{reference} is an exported folder already; export the run folder that it was made from")
    file = resolve_editor_file(reference)
    header = read_editor_header(file)
    stored: Mapping[str, Any] = header["extra"].get("config") or {}
    folder = file.parent.parent
    if not (file.parent.name == "checkpoints" and is_run_folder(folder)):
        config = public_config({"name": header["extra"].get("run"), "seed": header["extra"].get("seed"), **stored})
        return Record(file, header, {**config, "editor": header["config"]}, None, _path(stored), None, {}, [])
    run = RunFolder(folder)
    whole = run.config()
    about = folder / "environment.json"
    environment = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    strips = [path for path in sorted(run.media.glob("strip-*.png")) if path.stat().st_size < _STRIPS_BYTES]
    results = run.results()
    return Record(
        file, header, {**public_config(whole), "editor": header["config"]}, config_hash(whole), _path(whole),
        results if results and _has_rows(results) else None, environment, strips[:_STRIPS],
    )  # fmt: skip


def is_export(folder: Path) -> bool:
    """Whether `export_editor` wrote this folder."""
    card = folder / CARD
    return card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")


def _path(config: Mapping[str, Any]) -> str:
    return str((config.get("backbone") or {}).get("path") or "wan-sprites")


def _has_rows(results: Mapping[str, Any]) -> bool:
    """Whether these are results of a run's own evaluation, with a row of an editor."""
    rows = results.get("rows")
    return isinstance(rows, Mapping) and any(row.get("kind") == "editor" for row in rows.values())
