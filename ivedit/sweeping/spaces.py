"""What a sweep varies: a search's space, the values that tuning tries, prior trials, options of Optuna's classes.

Each function turns what was written into the plain data of `ivedit.sweeping.spec` and collects every fault as one line
that names the key, the bad value, who wrote it and what would fit. Values are judged by the run's own schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ivedit.config.fields import BadValue, Field, coerce, fields, show
from ivedit.sweeping.parse import Entry
from ivedit.sweeping.spec import Choice, PriorStudy, Range
from ivedit.sweeping.structures import layer_of

__all__ = ["options", "prior", "space", "values_of"]

FIXED = (
    "name", "summary", "output_dir", "resume", "plugins", "tracking.", "backbone.path", "data.path", "data.table",
    "evaluation.",
)  # fmt: skip
"""Settings that no search varies: where things lie, and by what measure a run is judged."""


def space(entry: Entry, problems: list[str]) -> dict[str, Range | Choice]:
    """What a search varies, by setting."""
    if not isinstance(entry.value, dict) or not entry.value:
        problems.append(
            f"space: {show(entry.value)} names no setting ({entry.source}); "
            "write space: {train.lr: {low: 1e-4, high: 1e-2, log: true}}"
        )
        return {}
    found: dict[str, Range | Choice] = {}
    for item, value in _varied("space", entry, problems):
        shown = f"space.{item.key}: {show(value)}"
        keys = set(value) if isinstance(value, dict) else set()
        if isinstance(value, list) or keys == {"choices"}:
            choice = _choice(f"space.{item.key}", item, value["choices"] if keys else value, entry.source, problems)
            found |= {item.key: choice} if choice else {}
        elif {"low", "high"} <= keys <= {"low", "high", "log", "step"}:
            faults = list(_range_faults(item, value))
            problems += [f"{shown}: {fault} ({entry.source})" for fault in faults]
            if not faults:
                found[item.key] = _range(item, value)
        else:
            problems.append(
                f"{shown} is no range ({entry.source}); write {{low: A, high: B}} with log: true or step: C "
                "if wanted, or {choices: [A, B]}"
            )
    return found


def _varied(key: str, entry: Entry, problems: list[str]) -> Iterator[tuple[Field, Any]]:
    """Every setting of a table that may be varied, with what was written about it."""
    for setting in layer_of(key, entry, problems).settings:
        item = fields()[setting.key]
        if setting.key.startswith(FIXED):
            problems.append(
                f"{key}.{setting.key}: no search varies it ({entry.source}); "
                "it says where things lie or how a run is judged, not what the run does"
            )
        elif setting.entry is not None or item.kind in ("list", "dict"):
            problems.append(
                f"{key}.{setting.key}: a {item.type_text} cannot be varied ({entry.source}); "
                "compare such settings as arms of a grid"
            )
        else:
            yield item, setting.value


def _range_faults(item: Field, value: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with ``{low, high, log, step}`` for this setting."""
    if item.kind not in ("int", "float"):
        yield f"a range is of numbers, and this is {item.type_text}; write {{choices: [...]}}"
        return
    for name in ("low", "high"):
        try:
            coerce(item, value[name])
        except BadValue as bad:
            yield f"{name}: {str(bad).partition('; write')[0]}"
            return
    low, high, step, log = value["low"], value["high"], value.get("step"), value.get("log", False)
    if low is None or high is None or not low < high:
        yield "low must be below high"
        return
    if not isinstance(log, bool):
        yield f"log: {show(log)} is neither true nor false"
    elif log and step is not None:
        yield "log and step exclude each other; leave one out"
    elif log and low <= 0:
        yield "a logarithmic range begins above 0"
    if step is not None:
        number = isinstance(step, (int, float)) and not isinstance(step, bool)
        if not number or step <= 0 or (item.kind == "int" and step != int(step)):
            yield f"step: {show(step)} is no {'whole ' if item.kind == 'int' else ''}number above 0"
        elif step > high - low:
            yield f"step: {show(step)} is more than the range is wide"


def _range(item: Field, value: Mapping[str, Any]) -> Range:
    kind = int if item.kind == "int" else float
    step = value.get("step")
    return Range(
        kind(value["low"]), kind(value["high"]), bool(value.get("log", False)),
        None if step is None else kind(step), item.kind == "int",
    )  # fmt: skip


def _choice(key: str, item: Field, value: Any, source: str, problems: list[str]) -> Choice | None:
    """Values of one setting, each as the setting's own type."""
    if not isinstance(value, list) or not value:
        problems.append(f"{key}: {show(value)} is no list of values ({source}); write {key}: [A, B]")
        return None
    found: list[Any] = []
    for choice in value:
        try:
            fit = coerce(item, choice)
        except BadValue as bad:
            problems.append(f"{key}: {bad} ({source})")
            return None
        if fit in found:
            problems.append(f"{key}: {show(choice)} is listed twice ({source}); name it once")
            return None
        found.append(fit)
    return Choice(tuple(found))


def values_of(key: str, entry: Entry, problems: list[str]) -> dict[str, Choice]:
    """``{KEY: [VALUE, ...]}``: the values that tuning tries."""
    if not isinstance(entry.value, dict) or not entry.value:
        problems.append(
            f"{key}: {show(entry.value)} names no setting ({entry.source}); write {key}: {{train.lr: [1e-3, 2e-3]}}"
        )
        return {}
    made = {
        item.key: _choice(f"{key}.{item.key}", item, _listed(value), entry.source, problems)
        for item, value in _varied(key, entry, problems)
    }
    return {name: choice for name, choice in made.items() if choice is not None}


def _listed(value: Any) -> Any:
    return value["choices"] if isinstance(value, dict) and set(value) == {"choices"} else value


def prior(
    entry: Entry, varied: Mapping[str, Range | Choice] | None, problems: list[str]
) -> tuple[Mapping[str, Any] | PriorStudy, ...]:
    """Parameters to run first, and studies to take such from; compared with what is ``varied``, where that is known."""
    if not isinstance(entry.value, list):
        problems.append(
            f"prior: {show(entry.value)} is no list ({entry.source}); "
            "write prior: [{train.lr: 1e-3}, {study: NAME}]"
        )
        return ()
    found: list[Mapping[str, Any] | PriorStudy] = []
    for item in entry.value:
        if not isinstance(item, dict) or not item:
            problems.append(f"prior: {show(item)} is neither {{KEY: VALUE}} nor {{study: NAME}} ({entry.source})")
        elif "study" in item:
            best = item.get("best", 5)
            if set(item) - {"study", "best"} or type(best) is not int or best < 1:
                problems.append(f"prior: {show(item)}: write {{study: NAME, best: 5}} ({entry.source})")
            else:
                found.append(PriorStudy(str(item["study"]), best))
        else:
            flat = {s.key: s.value for s in layer_of("prior", Entry(item, entry.source), problems).settings}
            if varied is not None:
                problems += _outside(flat, varied, entry.source)
            found.append(flat)
    return tuple(found)


def _outside(point: Mapping[str, Any], varied: Mapping[str, Range | Choice], source: str) -> Iterator[str]:
    for key, value in point.items():
        if key not in varied:
            yield f"prior: {key} is not in the space ({source}); add it there or leave it out"
        elif not varied[key].contains(value):
            yield f"prior: {key}: {show(value)} is outside of {show(varied[key].as_dict())} ({source})"


def options(key: str, entry: Entry, problems: list[str]) -> dict[str, Any]:
    """Options that are passed on as they are."""
    if isinstance(entry.value, dict):
        return {str(name): value for name, value in entry.value.items()}
    problems.append(f"{key}: {show(entry.value)} does not map options to values ({entry.source}); write {{OPTION: 1}}")
    return {}
