"""The keys of a sweep file that hold more than a value: arms, seeds, tuning, search space, objectives, claims.

Each function turns what was written into the plain data of `ivedit.sweeping.spec` and collects every fault as one line
that names the key, the bad value, who wrote it and what would fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ivedit import experiments
from ivedit.config.fields import BadValue, Field, coerce, fields, show
from ivedit.config.layers import Layer
from ivedit.errors import ConfigError
from ivedit.sweeping.parse import Entry, arguments_of
from ivedit.sweeping.spec import Arm, Choice, Comparison, Objective, PriorStudy, Range

__all__ = ["arms", "claims", "objectives", "options", "prior", "seeds", "settings", "space", "values_of"]

DIRECTIONS = ("maximize", "minimize")
FIXED = ("name", "summary", "output_dir", "resume", "plugins", "tracking.", "backbone.path", "data.path", "data.table")
"""Settings that no search varies: where things lie, not what is computed."""


def arms(entry: Entry, experiment: str, file: Path, problems: list[str]) -> tuple[Arm, ...]:
    """The rows of a grid: names of experiments, or ``{NAME: settings}`` with settings as a list or a mapping."""
    items = entry.value
    if isinstance(items, dict):
        items = [{name: value} for name, value in items.items()]
    if not isinstance(items, list) or not items:
        problems.append(f"arms: {show(items)} is no list of arms ({entry.source}); write arms: [imvideoedit, ...]")
        return ()
    found: list[Arm] = []
    for item in items:
        if isinstance(item, str):
            found += _arm(Path(item).stem, [f"experiment={item}"], experiment, file, entry, problems)
        elif isinstance(item, dict) and item:
            for name, given in item.items():
                found += _arm(str(name), given, experiment, file, entry, problems)
        else:
            problems.append(
                f"arms: {show(item)} is neither an experiment nor {{NAME: [key=value, ...]}} ({entry.source})"
            )
    names = [arm.name for arm in found]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        problems.append(
            f"arms: {name!r} is listed {names.count(name)} times ({entry.source}); "
            f"give each arm a name of its own: {{{name}_2: [...]}}"
        )
    return tuple(found)


def _arm(name: str, given: Any, experiment: str, file: Path, entry: Entry, problems: list[str]) -> list[Arm]:
    if given is None:
        given = []
    if isinstance(given, dict):
        chosen = given.get("experiment")
        given = {key: value for key, value in given.items() if key != "experiment"}
        written = settings(f"arms.{name}", Entry(given, entry.source), problems)
    elif isinstance(given, list) and all(isinstance(item, str) and "=" in item for item in given):
        named = [item.partition("=")[2] for item in given if item.startswith("experiment=")]
        if len(named) > 1:
            problems.append(f"arms.{name}: experiment= is given {len(named)} times ({entry.source}); give it once")
        chosen = named[0] if named else None
        written = tuple(item for item in given if not item.startswith("experiment="))
    else:
        problems.append(
            f"arms.{name}: {show(given)} is no list of settings ({entry.source}); write {name}: [editor.width=512]"
        )
        return []
    try:
        return [Arm(name, (f"experiment={experiment_file(str(chosen or experiment), file)}", *written))]
    except ConfigError as error:
        problems += [f"arms.{name}: {problem} ({entry.source})" for problem in error.problems]
        return []


def experiment_file(reference: str, file: Path) -> str:
    """A shipped experiment's name as it is; a path (relative to the sweep file, else to the working directory) whole.

    ConfigError when there is no such experiment.
    """
    beside = (file.parent / Path(reference).expanduser()).is_file()
    path = experiments.find(reference, relative_to=file.parent if beside else None)
    return reference if path.parent == experiments.folder() else str(path)


def settings(key: str, entry: Entry, problems: list[str]) -> tuple[str, ...]:
    """A mapping of a run's settings, dotted or nested, as ``key=value`` arguments."""
    if entry.value is None:
        return ()
    if not isinstance(entry.value, dict):
        problems.append(
            f"{key}: {show(entry.value)} does not map settings to values ({entry.source}); write {{train.lr: 1e-3}}"
        )
        return ()
    found: dict[str, Entry] = {}
    for setting in _layer(key, entry, problems).settings:
        name = setting.key if setting.entry is None else f"{setting.key}.{setting.entry}"
        found[name] = Entry(setting.value, entry.source)
    return arguments_of(found)


def _layer(key: str, entry: Entry, problems: list[str]) -> Layer:
    layer = Layer(entry.source)
    for name, value in entry.value.items():
        layer.add(str(name), value, entry.source)
    problems += [f"{key}: {problem}" for problem in layer.problems]
    return layer


def seeds(key: str, entry: Entry, problems: list[str]) -> tuple[int, ...]:
    """Whole numbers from 0, each once."""
    value = entry.value
    if isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value):
        double = sorted({seed for seed in value if value.count(seed) > 1})
        if double:
            problems.append(f"{key}: {double[0]} is listed twice ({entry.source}); every run needs its own seed")
        return tuple(value)
    problems.append(f"{key}: {show(value)} is no list of whole numbers from 0 ({entry.source}); write {key}: [0, 1, 2]")
    return ()


def objectives(key: str, entry: Entry, problems: list[str]) -> tuple[Objective, ...]:
    """``{METRIC: maximize or minimize}``, in the order given."""
    value = entry.value
    if not isinstance(value, dict) or not value:
        problems.append(f"{key}: {show(value)} names no metric ({entry.source}); write {key}: {{success: maximize}}")
        return ()
    found = []
    for metric, direction in value.items():
        if direction in DIRECTIONS:
            found.append(Objective(str(metric), direction))
        else:
            problems.append(
                f"{key}.{metric}: {show(direction)} is not one of {', '.join(DIRECTIONS)} ({entry.source})"
            )
    return tuple(found)


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
    for setting in _layer(key, entry, problems).settings:
        item = fields()[setting.key]
        if setting.key.startswith(FIXED):
            problems.append(f"{key}.{setting.key}: it says where things lie, so it is not varied ({entry.source})")
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
    entry: Entry, varied: Mapping[str, Range | Choice], problems: list[str]
) -> tuple[Mapping[str, Any] | PriorStudy, ...]:
    """Parameters to run first, and studies to take such from."""
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
            flat = {s.key: s.value for s in _layer("prior", Entry(item, entry.source), problems).settings}
            for key, value in flat.items():
                if key not in varied:
                    problems.append(f"prior: {key} is not in the space ({entry.source}); add it there or leave it out")
                elif not varied[key].contains(value):
                    problems.append(
                        f"prior: {key}: {show(value)} is outside of {show(varied[key].as_dict())} ({entry.source})"
                    )
            found.append(flat)
    return tuple(found)


def claims(entry: Entry, names: list[str], problems: list[str]) -> tuple[Comparison, ...]:
    """The declared family: ``{better: ARM, than: ARM}`` each, with ``metric`` if it is not success."""
    if not isinstance(entry.value, list):
        problems.append(
            f"claims: {show(entry.value)} is no list ({entry.source}); write claims: [{{better: ARM, than: ARM}}]"
        )
        return ()
    found = []
    for item in entry.value:
        if not isinstance(item, dict) or not {"better", "than"} <= set(item) <= {"better", "than", "metric"}:
            problems.append(f"claims: {show(item)}: write {{better: ARM, than: ARM}} ({entry.source})")
            continue
        claim = Comparison(str(item["better"]), str(item["than"]), str(item.get("metric", "success")))
        for name in (claim.better, claim.than):
            if name not in names:
                problems.append(f"claims: there is no arm {name!r} ({entry.source}); arms: {', '.join(names)}")
        if claim.better == claim.than:
            problems.append(f"claims: {claim.better!r} is compared with itself ({entry.source})")
        if claim in found:
            problems.append(f"claims: {show(item)} is listed twice ({entry.source}); name it once")
        found.append(claim)
    return tuple(found)


def options(key: str, entry: Entry, problems: list[str]) -> dict[str, Any]:
    """Options that are passed on as they are."""
    if isinstance(entry.value, dict):
        return {str(name): value for name, value in entry.value.items()}
    problems.append(f"{key}: {show(entry.value)} does not map options to values ({entry.source}); write {{OPTION: 1}}")
    return {}
