"""Evaluation sets that others published, in the layouts that they are downloaded in.

Each reader gives the clips of a set: id, source, instruction and what else the set knows. A method's outputs are then a
folder of files named by those ids; one that comes again gets -2, -3. Nothing is fetched; `NAME=PATH` names the folder
where a set lies, or its table.

| set | layout | id |
|---|---|---|
| ``openve`` (OpenVE-Bench) | ``benchmark_videos.csv`` (``original_video, prompt, edited_type``), ``videos/`` | the video's name |
| ``ivebench`` (IVEBench) | ``ivebenchdb_prompt_short.json``, ``ivebenchdb_mp4_short/``; or ``_long`` | the video's name |
| ``five`` (FiVE) | ``edit_prompt/*.json`` beside ``images/`` or ``videos/``, and ``bmasks/`` | <edit type>-<video> |
| ``davis`` (DAVIS) | ``JPEGImages/<resolution>/<clip>/*.jpg`` and ``Annotations/`` | the clip's name |
"""  # noqa: E501

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ivedit.data.table import inside, some
from ivedit.errors import ConfigError, or_nearest
from ivedit.evaluation.files import PICTURES, VIDEOS, is_media
from ivedit.evaluation.manifest import Entry, Manifest, combine

__all__ = ["SETS", "SetClip", "read_outputs", "read_set"]


@dataclass(frozen=True)
class SetClip:
    """One clip of a set.

    Attributes:
        object: What the mask covers, where the set says so.
    """

    id: str
    source: Path
    instruction: str
    operation: str = ""
    mask: Path | None = None
    source_caption: str = ""
    target_caption: str = ""
    object: str = ""


def read_set(where: str) -> list[SetClip]:
    """The clips of ``NAME=PATH``, with unique ids. ConfigError when the folder is not laid out like that set."""
    name, equals, place = where.partition("=")
    if not equals or not place:
        raise ConfigError(f"--set {where}: write NAME=PATH, with NAME one of {', '.join(SETS)}")
    if name not in SETS:
        raise ConfigError(f"--set {name} is not known; {or_nearest(name, SETS)}")
    folder = Path(place).expanduser().resolve()
    if not folder.exists():
        raise ConfigError(f"--set {where}: {place} does not exist")
    clips = SETS[name](folder if folder.is_dir() else folder.parent, folder)
    if not clips:
        raise ConfigError(f"--set {where}: no clips were found there")
    return _unique(clips)


def read_outputs(where: str, folders: Sequence[Path], *, fit: bool = False) -> Manifest:
    """Methods' outputs on a set: each folder holds one file (or folder of frames) for each id.

    Args:
        where: ``NAME=PATH``.
        folders: One for each method, which is called by the folder's name.
        fit: As for `ivedit.evaluation.manifest.combine`.

    Raises:
        ConfigError: missing or extra outputs, clips without an instruction, and all that `combine` finds.
    """
    clips = read_set(where)
    problems = [f"{where}: clip {clip.id!r} has no instruction" for clip in clips if not clip.instruction]
    entries: list[Entry] = []
    for folder in folders:
        if not folder.is_dir():
            problems.append(f"{folder} is not a folder of outputs")
            continue
        found = {path.stem if is_media(path) else path.name: path.resolve() for path in sorted(folder.iterdir())
                 if not path.name.startswith(".") and (is_media(path) or path.is_dir())}  # fmt: skip
        missing = [clip.id for clip in clips if clip.id not in found]
        extra = sorted(found.keys() - {clip.id for clip in clips})
        if missing:
            problems.append(f"{folder} has no output for {some(missing)}; name each <id>.mp4, <id>.png or <id>/")
        if extra:
            problems.append(f"{folder} has outputs of clips that are not in the set: {some(extra)}")
        method = folder.resolve().name
        entries += [
            Entry(clip.id, method, clip.instruction, clip.source, found[clip.id], None, clip.mask,
                  clip.source_caption, clip.target_caption, clip.operation)
            for clip in clips if clip.id in found
        ]  # fmt: skip
    return combine(entries, list(folders), problems, fit=fit)


def _unique(clips: Iterable[SetClip]) -> list[SetClip]:
    seen: dict[str, int] = {}
    found = []
    for clip in clips:
        id = re.sub(r"[^\w.-]+", "_", clip.id)
        seen[id] = seen.get(id, 0) + 1
        found.append(replace(clip, id=id if seen[id] == 1 else f"{id}-{seen[id]}"))
    return found


# -- the layouts ---------------------------------------------------------------------------------------------------


def _openve(folder: Path, given: Path) -> list[SetClip]:
    """OpenVE-Bench: a CSV; its paths start at the folder above (``OpenVE-Bench/videos/NAME.mp4``) or at its own."""
    table = given if given.is_file() else _only(folder, "*.csv", "OpenVE-Bench's CSV")
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeError, csv.Error) as error:
        raise ConfigError(f"{table} cannot be read: {error}") from error
    _columns(table, rows[0] if rows else {}, ("original_video", "prompt"))
    name = "OpenVE-Bench"
    return [
        SetClip(Path(row["original_video"]).stem,
                _video(folder, row["original_video"].removeprefix(f"{name}/"), table, (*_PLACES, name)),
                row["prompt"].strip(), (row.get("edited_type") or "").strip())
        for row in rows
    ]  # fmt: skip


_SOURCE = ("src_video_name", "source_video", "src_video", "video", "video_path", "source", "file_name", "video_name")
_PROMPT = ("edit_prompt", "instruction", "prompt", "editing_prompt")
_KIND = ("category", "subcategory", "edited_type", "edit_type", "type", "task")


def _ivebench(folder: Path, given: Path) -> list[SetClip]:
    """IVEBench: a JSON list of records for the short or the long videos, which lie in a folder of that name.

    Two subsets in one folder are two sets, as IVEBench counts them: the table is named, and with it the videos. Clips
    are called by their videos' names, as IVEBench wants them of outputs, not by its ``id``, which counts the records.
    """
    table = given if given.is_file() else _only(folder, "*.json", "IVEBench's JSON")
    content = _json(table)
    lists = content if isinstance(content, list) else list(_rows(content))
    subset = next((part for part in ("short", "long") if part in table.stem.lower()), "short")
    places = (f"ivebenchdb_mp4_{subset}", *_PLACES)
    clips = []
    for number, row in enumerate(lists):
        if not isinstance(row, dict):
            raise ConfigError(f"{table}: entry {number} is not an object")
        video, prompt = _first(row, _SOURCE), _first(row, _PROMPT)
        if not video or not prompt:
            what = f"one of {', '.join(_SOURCE)}" if not video else f"one of {', '.join(_PROMPT)}"
            raise ConfigError(f"{table}: entry {number} has no {what}; it has {', '.join(row)}")
        clips.append(SetClip(
            Path(video).stem, _video(folder, video, table, places), prompt, _first(row, _KIND),
            source_caption=_first(row, ("source_prompt", "source_caption", "src_prompt")),
            target_caption=_first(row, ("target_prompt", "target_caption", "tgt_prompt")),
        ))  # fmt: skip
    return clips


def _rows(content: Mapping[str, Any]) -> Iterator[Any]:
    """Records of an object that holds them by video or, in lists, by category."""
    for name, value in content.items():
        if isinstance(value, list):
            yield from ({"category": name, **row} if isinstance(row, dict) else row for row in value)
        else:
            yield {"video": name, **value} if isinstance(value, dict) else value


def _five(folder: Path, given: Path) -> list[SetClip]:
    """FiVE: ``edit_prompt/edit1_FiVE.json`` and so on; one edit type a file, captions before and after."""
    files = sorted((folder / "edit_prompt").glob("*.json"))
    if not files:
        raise ConfigError(f"{folder} is not laid out like FiVE: there is no edit_prompt/*.json")
    clips = []
    for file in files:
        kind = re.sub(r"_?FiVE$", "", file.stem)
        rows = _json(file)
        for row in rows if isinstance(rows, list) else rows.values():
            video = _first(row, ("video_name", *_SOURCE))
            if not video:
                raise ConfigError(f"{file}: an entry has no video_name; it has {', '.join(row)}")
            before, after = (re.sub(r"[][]", "", _first(row, (name,))) for name in ("source_prompt", "target_prompt"))
            asked = _first(row, ("instruction", "edit_prompt", "editing_instruction")) or after
            clips.append(SetClip(
                f"{kind}-{Path(video).stem}", _video(folder, video, file, ("images", *_PLACES)), asked, kind,
                _mask(folder, video), before, after,
            ))  # fmt: skip
    return clips


def _davis(folder: Path, given: Path) -> list[SetClip]:
    """DAVIS: frame folders with masks; instructions from ``instructions.json`` ({clip: text}), which DAVIS has not."""
    frames = _largest(folder / "JPEGImages")
    if frames is None:
        raise ConfigError(f"{folder} is not laid out like DAVIS: there is no JPEGImages/<resolution>/<clip>/")
    masks = _largest(folder / "Annotations")
    asked = _json(folder / "instructions.json") if (folder / "instructions.json").is_file() else {}
    clips = []
    for clip in sorted(path for path in frames.iterdir() if path.is_dir()):
        mask = masks / clip.name if masks is not None and (masks / clip.name).is_dir() else None
        thing = "the " + re.sub(r"[-_]+", " ", clip.name) if mask else ""
        clips.append(SetClip(clip.name, clip, str(asked.get(clip.name, "")), mask=mask, object=thing))
    return clips


SETS: dict[str, Callable[[Path, Path], list[SetClip]]] = {
    "openve": _openve, "ivebench": _ivebench, "five": _five, "davis": _davis,
}  # fmt: skip
"""name -> reader of (the set's folder, what was named: the folder or its table)."""


# -- finding things ------------------------------------------------------------------------------------------------


def _only(folder: Path, pattern: str, what: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        there = f"has {len(found)} files {pattern}: {some([path.name for path in found])}; name one" if found else (
            f"has no {pattern}"
        )
        raise ConfigError(f"{folder} should hold {what}, but {there}")
    return found[0]


def _columns(table: Path, row: Mapping[str, Any], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in row]
    if missing:
        raise ConfigError(f"{table} has no column {', '.join(missing)}; it has {', '.join(map(str, row)) or 'no rows'}")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of these fields that has something in it."""
    return next((str(row[name]).strip() for name in names if row.get(name)), "")


_PLACES = ("", "videos", "video", "images", "source_videos")


def _video(folder: Path, name: str, table: Path, places: Sequence[str] = _PLACES) -> Path:
    """The clip that a table names: a file, or a folder of frames, below the set's folder. ConfigError when missing."""
    escapes = False
    for place in places:
        found = inside(folder, str(Path(place, name)))
        escapes |= found is None
        stem = None if found is None else found.with_suffix("") if found.suffix.lower() in VIDEOS else found
        for path in (found, stem, *(Path(f"{found}{suffix}") for suffix in VIDEOS)):
            if path is not None and (path.is_file() or (path.is_dir() and path != folder)):
                return path
    what = "leads out of" if escapes else "is not in"
    raise ConfigError(f"{table}: video {name!r} {what} {folder}")


def _mask(folder: Path, video: str) -> Path | None:
    """FiVE's mask of a clip: a folder or video of its name below ``bmasks/``."""
    stem = Path(video).stem
    for suffix in ("", *VIDEOS, *PICTURES):
        path = inside(folder, f"bmasks/{stem}{suffix}")
        if path is not None and path.exists():
            return path
    return None


def _largest(folder: Path) -> Path | None:
    """The subfolder with clips: DAVIS has ``480p`` and ``Full-Resolution``; 480p is the one people use."""
    if not folder.is_dir():
        return None
    below = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    holders = [path for path in below if any(child.is_dir() for child in path.iterdir())]
    if not holders:
        return folder if below else None
    return next((path for path in holders if path.name == "480p"), holders[0])
