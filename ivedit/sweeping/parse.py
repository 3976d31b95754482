"""Read a sweep file and the command line over it into one table of what was given, and by whom.

Keys are the sweep's own (`ivedit.sweeping.schema`) or, under ``settings:`` and on the command line, those of a run.
Values are not judged here: `ivedit.sweeping.structures`, `ivedit.sweeping.spaces` and `ivedit.sweeping.rules` do that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ivedit import experiments
from ivedit.config.fields import BadValue, coerce, fields, groups, show
from ivedit.config.layers import Layer, Setting, or_nearest_key, read_yaml, typed_value
from ivedit.errors import ConfigError, or_nearest
from ivedit.runfolder import redact
from ivedit.sweeping.schema import STRUCTURES, SweepConfig

__all__ = ["RECORD", "Entry", "Given", "arguments_of", "own_keys", "read", "refuse", "written"]

RECORD = "sweep.yaml"
"""The resolved sweep in its own folder; a sweep file like any other."""

GROUPS = ("sampler", "pruner", "tune")
TABLES = tuple(key for key, (kind, _) in STRUCTURES.items() if kind == "dict")
OF_SETTINGS = ("space", "tune.space", "tune.settings")
"""Tables of a run's settings, which may be written dotted or nested."""


@dataclass(frozen=True)
class Entry:
    """A value and where it was written. ``text`` is the raw text of a command-line value."""

    value: Any
    source: str
    text: str | None = None


@dataclass
class Given:
    """All that was asked for: ``values`` of plain keys (complete, checked), ``structures`` as they were written."""

    file: Path
    values: dict[str, Any]
    sources: dict[str, str]
    structures: dict[str, Entry]
    settings: dict[str, Entry] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def source(self, key: str) -> str:
        """Where ``key`` was set, for messages."""
        entry = self.structures.get(key) or self.settings.get(key)
        return entry.source if entry else self.sources.get(key, "default")

    def asked(self, key: str) -> bool:
        """Whether the file or the command line set ``key`` or something inside it."""
        return any(name == key or name.startswith(f"{key}.") for name in (*self.sources, *self.structures))


def own_keys() -> list[str]:
    """Every key of a sweep file, in the order in which to read about them."""
    plain = list(fields(SweepConfig))
    first = plain.index("n_trials")
    return [*plain[:first], *STRUCTURES, *plain[first:]]


def read(reference: str, arguments: Sequence[str]) -> Given:
    """The sweep file that ``reference`` means with ``key=value`` arguments over it.

    ``reference`` is a shipped name, a path ending in .yaml, or the folder of a sweep that was started before.
    ConfigError when there is no such file or it is no YAML; all other faults are collected in ``problems``.
    """
    folder = Path(reference).expanduser()
    started = "/" in reference and (folder / RECORD).is_file()
    path = (folder / RECORD).resolve() if started else experiments.SWEEPS.find(reference)
    table = fields(SweepConfig)
    given = Given(path, {key: item.default for key, item in table.items()}, {}, {})
    given.values["name"] = path.stem
    taken = _Taken(given)
    content, lines = read_yaml(path)
    where = experiments.shown(path)
    for key, value in content.items():
        taken.add(key, Entry(value, f"{where}:{lines[key]}" if key in lines else where), typed=False)
    if started:  # wherever it lies now
        taken.add("output_dir", Entry(str(folder.parent), where), typed=False)
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            given.problems.append(f"{argument}: not understood; settings are written key=value, options are in --help")
            continue
        try:
            taken.add(key, Entry(typed_value(text), f"command line: {argument}", text), typed=True)
        except ValueError as fault:
            given.problems.append(f"{key}: {fault}; quote it: {key}='\"...\"'")
    for key, item in table.items():
        if key in given.sources:
            try:
                given.values[key] = coerce(item, given.values[key], taken.texts.get(key))
            except BadValue as bad:
                given.problems.append(f"{key}: {bad} ({given.sources[key]})")
                given.values[key] = item.default
    return given


class _Taken:
    """Files one key after the other under what it is."""

    def __init__(self, given: Given) -> None:
        self.given = given
        self.texts: dict[str, str | None] = {}

    def add(self, key: str, entry: Entry, *, typed: bool) -> None:
        """File a key of the sweep file, or (``typed``) of the command line."""
        given = self.given
        if key in given.values:
            given.values[key], given.sources[key], self.texts[key] = entry.value, entry.source, entry.text
        elif key == "settings" or key.startswith("settings."):
            self._settings(key, entry)
        elif key in STRUCTURES:
            given.structures[key] = replace(entry, value=_dotted(entry.value)) if key in OF_SETTINGS else entry
        elif key in GROUPS:
            self._group(key, entry)
        elif (table := self._table(key)) is not None:
            self._into_table(table, key.removeprefix(f"{table}."), entry)
        elif typed and self._is_of_a_run(key):
            self._setting(key, entry)
        else:
            given.problems.append(f"{key}: there is no such key ({entry.source}); {self._hint(key, typed)}")

    def _group(self, key: str, entry: Entry) -> None:
        if entry.value is None:
            for name in [name for name in self.given.structures if name.startswith(f"{key}.")]:
                del self.given.structures[name]
        elif isinstance(entry.value, dict):
            for name, value in entry.value.items():
                self.add(f"{key}.{name}", Entry(value, entry.source), typed=False)
        else:
            self.given.problems.append(
                f"{key}: {show(entry.value)} is not a group of keys ({entry.source}); "
                f"set one of them: {', '.join(name for name in own_keys() if name.startswith(f'{key}.'))}"
            )

    def _table(self, key: str) -> str | None:
        """The table of which ``key`` names one entry: ``space`` for ``space.train.lr``."""
        return next((table for table in (*TABLES, "slurm") if key.startswith(f"{table}.")), None)

    def _into_table(self, table: str, name: str, entry: Entry) -> None:
        """Add one entry to a table; null takes it out."""
        given = self.given
        plain = table in given.values
        before = given.values[table] if plain else given.structures.get(table, Entry({}, "")).value
        after = {**(before if isinstance(before, dict) else {}), name: entry.value}
        if entry.value is None and table != "slurm":
            del after[name]
        if plain:
            given.values[table], given.sources[table] = after, entry.source
        else:
            given.structures[table] = Entry(after, entry.source)

    def _settings(self, key: str, entry: Entry) -> None:
        if key != "settings":
            self._setting(key.removeprefix("settings."), entry)
        elif isinstance(entry.value, dict):
            for name, value in entry.value.items():
                self._setting(str(name), Entry(value, entry.source))
        elif entry.value is not None:
            self.given.problems.append(
                f"settings: {show(entry.value)} does not map settings to values ({entry.source}); "
                "write e.g. settings: {train.max_steps: 50}"
            )

    def _setting(self, key: str, entry: Entry) -> None:
        """A run's setting; a group's mapping is taken apart, and unknown keys are answered with the nearest."""
        layer = Layer(entry.source)
        layer.add(key, entry.value, entry.source, entry.text)
        self.given.problems += layer.problems
        for setting in layer.settings:
            name = _full_name(setting)
            self.given.settings.pop(name, None)  # the last one of a key counts, and its place in the order too
            self.given.settings[name] = Entry(setting.value, setting.source, setting.text)

    @staticmethod
    def _is_of_a_run(key: str) -> bool:
        parent = key.rpartition(".")[0]
        return key in fields() or key in groups() or (parent in fields() and fields()[parent].kind == "dict")

    def _hint(self, key: str, typed: bool) -> str:
        if not typed and self._is_of_a_run(key):
            return f"it is a setting of a run: write it under `settings:`, settings: {{{key}: ...}}"
        hint = or_nearest(key, [*own_keys(), *GROUPS, "settings", *(fields() if typed else ())])
        if hint.startswith("did you"):
            return hint
        return or_nearest_key(key) if typed else "`--help` lists them all"


def _dotted(table: Any) -> Any:
    """``{train: {lr: X}}`` as ``{train.lr: X}``; anything else as it is."""
    if not isinstance(table, dict):
        return table
    flat: dict[str, Any] = {}
    for key, value in table.items():
        nested = key in groups() and isinstance(value, dict)
        flat |= {f"{key}.{name}": item for name, item in value.items()} if nested else {str(key): value}
    return flat


def _full_name(setting: Setting) -> str:
    return setting.key if setting.entry is None else f"{setting.key}.{setting.entry}"


def arguments_of(settings: dict[str, Entry]) -> tuple[str, ...]:
    """Settings as ``key=value`` arguments of a run, in the order in which they were given."""
    return tuple(
        f"{key}={entry.text if entry.text is not None else show(entry.value)}" for key, entry in settings.items()
    )


def written(key: str, entry: Entry) -> Any:
    """A setting's value for a sweep file: words that YAML would take for numbers stay words."""
    item = fields().get(key)
    words = item is not None and item.kind == "str" and entry.text is not None and entry.value is not None
    return entry.text if words else entry.value


def refuse(problems: Sequence[str]) -> None:
    """ConfigError with all problems, each once and without passwords, when there are any."""
    if problems:
        raise ConfigError(list(dict.fromkeys(redact(problem) for problem in problems)))
