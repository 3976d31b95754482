"""The manifest of finished edits: what anyone's editor made, in one documented form, checked before it is scored.

A folder of finished edits holds ``manifest.jsonl``, one line for each edited clip::

    {"id": "cat-01", "source": "sources/cat-01.mp4", "edited": "edits/cat-01.mp4", "instruction": "make it night"}

| field | meaning |
|---|---|
| id | names the clip; the same for every method that edited it |
| source, edited | video, picture, or folder of frames; relative to the manifest's folder (``source`` may lie elsewhere, see ``sources``) |
| instruction | what was asked for |
| method | who edited it; left out: the folder's name |
| truth | the true edit, where it is known |
| mask | where the true edit may change pixels: above half is inside; one picture serves all frames |
| source_caption, target_caption | descriptions of the source and of the wanted result, for metrics that read words |
| operation | kind of edit, for tables |

A missing or unknown field, a repeated id, a path that leads out of its folder, a missing or damaged file, a file that
no line names, methods that edited different clips, lengths or sizes that differ: all are found together and told in
one error, before anything is scored.
"""  # noqa: E501

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ivedit.data.progress import Progress
from ivedit.data.table import inside, some
from ivedit.errors import ConfigError, IveditError, or_nearest
from ivedit.evaluation.files import ClipFacts, clip_facts, is_media
from ivedit.runfolder import write_text_atomic

__all__ = ["CONTROL", "FIELDS", "NAME", "EditedClip", "Entry", "Manifest", "combine", "read_manifest", "write_manifest"]

NAME = "manifest.jsonl"
REQUIRED = ("id", "source", "edited", "instruction")
FIELDS = (*REQUIRED, "method", "truth", "mask", "source_caption", "target_caption", "operation")
SMALLEST = 16
"""Pixels of the shorter side that metrics need."""

_PATHS = ("source", "edited", "truth", "mask")
CONTROL = "source_copy"
"""The row that every table has; no method may be called so."""


@dataclass(frozen=True)
class Entry:
    """One line: an edited clip of one method, with files that lie inside their folders."""

    id: str
    method: str
    instruction: str
    source: Path
    edited: Path
    truth: Path | None = None
    mask: Path | None = None
    source_caption: str = ""
    target_caption: str = ""
    operation: str = ""


@dataclass(frozen=True)
class EditedClip:
    """A clip with the edits of every method.

    Attributes:
        facts: Length and size of all its edits, in which it is scored.
        fitted: Whether source, truth or mask are cut or scaled to them.
    """

    id: str
    instruction: str
    source: Path
    edits: Mapping[str, Path]
    truth: Path | None
    mask: Path | None
    source_caption: str
    target_caption: str
    operation: str
    facts: ClipFacts
    fitted: bool = False


@dataclass(frozen=True)
class Manifest:
    """Checked edits: the same clips for every method.

    Attributes:
        clips: In the order of the first folder.
        methods: In the order in which they were given.
        places: The folders.
    """

    clips: list[EditedClip]
    methods: list[str]
    places: list[Path] = field(default_factory=list)


def read_manifest(folders: Sequence[Path], *, sources: Path | None = None, fit: bool = False) -> Manifest:
    """Read and check one or several folders of finished edits.

    Args:
        folders: Each with a ``manifest.jsonl``.
        sources: Folder that ``source``, ``truth`` and ``mask`` are relative to; None: the manifest's own.
        fit: See `combine`.

    Raises:
        ConfigError: every fault found.
    """
    entries: list[Entry] = []
    problems: list[str] = []
    for folder in folders:
        found, faults = _read(folder, sources)
        problems += faults or _extra(folder, found)
        entries += found
    return combine(entries, list(folders), problems, fit=fit)


def combine(
    entries: Iterable[Entry], places: list[Path], problems: Sequence[str] = (), *, fit: bool = False
) -> Manifest:
    """Entries of all methods as clips, after every file has been decoded once.

    Args:
        entries: Of all methods.
        places: The folders that they come from.
        problems: Faults found before, told with those found here.
        fit: Cut and scale sources, truths and masks to the edits' length and size, in place of refusing them.

    Raises:
        ConfigError: every fault found.
    """
    faults = list(problems)
    by_method: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        known = by_method.setdefault(entry.method, {})
        if entry.id in known:
            faults.append(f"id {entry.id!r} of method {entry.method!r} is there twice; ids must be unique")
        known[entry.id] = entry
    if CONTROL in by_method:
        faults.append(f"a method cannot be called {CONTROL!r}, which every table has as a control; rename it")
    if not by_method and not faults:
        faults.append(f"no edits in {some([str(place) for place in places])}")
    ids = list(dict.fromkeys(id for known in by_method.values() for id in known))
    for method, known in by_method.items():
        missing = [id for id in ids if id not in known]
        if missing:
            faults.append(
                f"method {method!r} has no edit of {some(missing)}; methods are compared on the same clips, so add "
                "these or leave them out everywhere"
            )
    if faults:
        raise ConfigError(faults)
    facts, faults = _decoded(entry for known in by_method.values() for entry in known.values())
    clips: list[EditedClip] = []
    for id in ids:
        try:
            clips.append(_clip([known[id] for known in by_method.values()], facts, fit))
        except ConfigError as error:
            faults += error.problems
        except KeyError:
            continue  # one of its files cannot be read, which is among the faults already
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))
    return Manifest(clips, list(by_method), places)


def write_manifest(folder: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``manifest.jsonl``; it appears whole and last, so a folder with one is complete. Empty fields stay out."""
    for line in lines:
        unknown = [name for name in line if name not in FIELDS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no field of a manifest")
    text = "".join(
        json.dumps({name: line[name] for name in FIELDS if line.get(name)}, ensure_ascii=False) + "\n"
        for line in lines
    )
    write_text_atomic(folder / NAME, text)
    return folder / NAME


# -- one folder ----------------------------------------------------------------------------------------------------


def _read(folder: Path, sources: Path | None) -> tuple[list[Entry], list[str]]:
    path = folder / NAME
    if not path.is_file():
        what = "does not exist" if not folder.exists() else f"has no {NAME}"
        return [], [f"{folder} {what}: write one JSON line for each edit, with {', '.join(REQUIRED)}"]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        return [], [f"{path} cannot be read: {error}"]
    entries: list[Entry] = []
    problems: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() also splits at U+2028, which JSON allows
        if line.strip():
            entry, faults = _entry(line, f"{path}:{number}", folder, sources or folder)
            problems += faults
            entries += [entry] if entry is not None else []
    if not entries and not problems:
        problems.append(f"{path} has no lines")
    return entries, problems


def _entry(line: str, where: str, folder: Path, sources: Path) -> tuple[Entry | None, list[str]]:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        return None, [f"{where} is not JSON: {error.msg} at column {error.colno}"]
    if not isinstance(content, dict):
        return None, [f"{where} is not a JSON object with {', '.join(REQUIRED)}"]
    problems = [f"{where}: field {name!r} is not known; {or_nearest(name, FIELDS)}"
                for name in content if name not in FIELDS]  # fmt: skip
    for name in FIELDS:
        value = content.get(name)
        if value is None and name in REQUIRED:
            problems.append(f"{where}: field {name!r} is missing")
        elif value is not None and (not isinstance(value, str) or not value.strip()):
            problems.append(f"{where}: {name} is {json.dumps(value)}, not a text with something in it")
    if problems:
        return None, problems
    paths: dict[str, Path] = {}
    for name in _PATHS:
        if content.get(name) is not None:
            root = (folder if name == "edited" else sources).resolve()
            found = inside(root, content[name])
            if found is None:
                problems.append(f"{where}: {name} {content[name]!r} leads out of {root}")
            elif not found.exists():
                problems.append(f"{where}: {name} {content[name]!r} does not exist in {root}")
            else:
                paths[name] = found
    if problems:
        return None, problems
    entry = Entry(
        content["id"], content.get("method") or folder.resolve().name, content["instruction"],
        paths["source"], paths["edited"], paths.get("truth"), paths.get("mask"),
        content.get("source_caption", ""), content.get("target_caption", ""), content.get("operation", ""),
    )  # fmt: skip
    return entry, []


def _extra(folder: Path, entries: Sequence[Entry]) -> list[str]:
    """Media files of a folder that no line names: a forgotten line would silently shrink the table."""
    named = {path for entry in entries for path in (entry.source, entry.edited, entry.truth, entry.mask) if path}
    extra = []
    for path in sorted(folder.resolve().rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder.resolve()).parts)
        if path.is_file() and is_media(path) and not hidden:
            real = path.resolve()
            if real not in named and not any(parent in named for parent in real.parents):
                extra.append(str(path.relative_to(folder.resolve())))
    if not extra:
        return []
    return [f"{folder} has files that no line of {NAME} names: {some(extra)}; add their lines or take them out"]


# -- all folders ---------------------------------------------------------------------------------------------------


def _decoded(entries: Iterable[Entry]) -> tuple[dict[Path, ClipFacts], list[str]]:
    """Facts of every file that can be decoded, and what is wrong with the others."""
    files = list(dict.fromkeys(path for e in entries for path in (e.source, e.edited, e.truth, e.mask) if path))
    facts: dict[Path, ClipFacts] = {}
    problems: list[str] = []
    with Progress("checking files", len(files)) as progress:
        for path in files:
            try:
                facts[path] = clip_facts(path)
            except IveditError as error:
                problems.append(str(error))
            progress.advance(1)
    return facts, problems


def _clip(entries: Sequence[Entry], facts: Mapping[Path, ClipFacts], fit: bool) -> EditedClip:
    first = entries[0]
    problems: list[str] = []
    for other in entries[1:]:
        for name in ("instruction", "source_caption", "target_caption", "operation"):
            mine, theirs = getattr(first, name), getattr(other, name)
            if mine != theirs:
                problems.append(f"clip {first.id!r}: {name} differs, {mine!r} ({first.method}) and {theirs!r} "
                                f"({other.method})")  # fmt: skip
        for name in ("source", "truth", "mask"):
            if not _same_file(getattr(first, name), getattr(other, name)):
                problems.append(f"clip {first.id!r}: {first.method} and {other.method} have another {name}")
    size = facts[first.edited]
    if min(size.height, size.width) < SMALLEST:
        problems.append(f"clip {first.id!r}: the edit is {size.height}x{size.width} (height x width); "
                        f"{SMALLEST} pixels are the least")  # fmt: skip
    for entry in entries[1:]:
        if facts[entry.edited] != size:
            problems.append(f"clip {first.id!r}: {first.method} wrote {size}, {entry.method} {facts[entry.edited]} "
                            "(height x width); every method is scored on the same frames")  # fmt: skip
    fitted = False
    for name in ("source", "truth", "mask"):
        path = getattr(first, name)
        if path is None or facts[path] == size or _serves_all(name, facts[path], size):
            continue
        if fit and (facts[path].frames >= size.frames or (name == "mask" and facts[path].frames == 1)):
            fitted = True
            continue
        hint = "it is too short" if fit else "make them alike, or let --fit cut and scale it to the edit"
        problems.append(f"clip {first.id!r}: {name} has {facts[path]}, the edit {size} (height x width); {hint}")
    if problems:
        raise ConfigError(problems)
    return EditedClip(
        first.id, first.instruction, first.source, {entry.method: entry.edited for entry in entries}, first.truth,
        first.mask, first.source_caption, first.target_caption, first.operation, size, fitted,
    )  # fmt: skip


def _serves_all(name: str, given: ClipFacts, size: ClipFacts) -> bool:
    return name == "mask" and given == ClipFacts(1, size.height, size.width)


def _same_file(mine: Path | None, theirs: Path | None) -> bool:
    """The same file, or one with the same content: methods' folders may carry copies of the sources."""
    if mine is None or theirs is None or mine == theirs:
        return mine == theirs
    return _digest(mine) == _digest(theirs)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.name.encode() if path.is_dir() else b"")
            digest.update(file.read_bytes())
    return digest.hexdigest()
