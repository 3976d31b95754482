"""How a known set calls its columns, splits and scores: YAML files, shipped in `presets/` or a user's own.

A preset is data, not code. Its keys are the fields of `Preset`; `data.columns`, `data.split` and the other settings
of a run stand above it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ivedit.config.rules import PAIR_FIELDS, PRESETS
from ivedit.errors import ConfigError, or_nearest

__all__ = ["FOLDER", "Preset", "load_preset", "presets_table"]

FOLDER = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Preset:
    """One set.

    Attributes:
        name: Of the preset.
        summary: One sentence for the table in docs/data.md.
        hub: Where it is on the hub (owner/name); None: files that everyone has to bring.
        subset: The set's configuration, where it has several.
        split, validation_split: Names of its splits; without the latter pairs are held out of the former.
        columns: Column for each field of a pair.
        scores: Columns that `data.min_scores` may filter by, for the table in docs/data.md.
    """

    name: str
    summary: str = ""
    hub: str | None = None
    subset: str | None = None
    split: str | None = None
    validation_split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    scores: tuple[str, ...] = ()


def load_preset(name: str) -> Preset:
    """A shipped preset by its name, or the one in a YAML file.

    Raises:
        ConfigError: there is none, or its content is not a preset's; every fault at once.
    """
    own = name.endswith((".yaml", ".yml"))
    path = Path(name).expanduser() if own else FOLDER / f"{name}.yaml"
    if not own and name not in PRESETS:
        raise ConfigError(f"data.preset: there is no preset {name!r}: {or_nearest(name, PRESETS)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as problem:
        raise ConfigError(f"data.preset: {name!r} cannot be read: {str(problem).splitlines()[0]}") from None
    return _checked(path.stem if own else name, name, content)


def _checked(name: str, shown: str, content: Any) -> Preset:
    known = [one.name for one in fields(Preset) if one.name != "name"]
    if not isinstance(content, dict):
        raise ConfigError(f"data.preset: {shown!r} must map {', '.join(known)} to their values")
    problems = [f"data.preset: {shown!r} has the key {key!r}: {or_nearest(str(key), known)}"
                for key in content if key not in known]  # fmt: skip
    columns = content.get("columns", {})
    if not isinstance(columns, dict) or not all(isinstance(column, str) for column in columns.values()):
        problems.append(f"data.preset: columns of {shown!r} must map fields to names of columns")
    else:
        problems += [f"data.preset: columns of {shown!r} name {key!r}: {or_nearest(str(key), PAIR_FIELDS)}"
                     for key in columns if key not in PAIR_FIELDS]  # fmt: skip
    scores = content.get("scores", [])
    if not isinstance(scores, list) or not all(isinstance(score, str) for score in scores):
        problems.append(f"data.preset: scores of {shown!r} must be a list of columns")
    for key in ("summary", "hub", "subset", "split", "validation_split"):
        if not isinstance(content.get(key, ""), str):
            problems.append(f"data.preset: {key} of {shown!r} must be text, not {content[key]!r}")
    if problems:
        raise ConfigError(problems)
    return Preset(name=name, **{**content, "columns": dict(columns), "scores": tuple(scores)})


def presets_table() -> str:
    """The shipped presets as a Markdown table."""
    lines = ["| `data.preset` | set | columns | scores |", "|---|---|---|---|"]
    for preset in map(load_preset, PRESETS):
        columns = ", ".join(f"{key}: `{column}`" for key, column in preset.columns.items())
        where = f"`{preset.hub}`" if preset.hub else "your CSV"
        if preset.split:
            where += f", split `{preset.split}`"
        scores = ", ".join(f"`{score}`" for score in preset.scores) or "none"
        lines.append(f"| `{preset.name}` | {where}. {preset.summary} | {columns} | {scores} |")
    return "\n".join(lines) + "\n"
