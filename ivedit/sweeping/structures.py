"""The keys of a sweep file that hold more than a value: arms, seeds, settings, objectives, claims.

Each function turns what was written into the plain data of `ivedit.sweeping.spec` and collects every fault as one line
that names the key, the bad value, who wrote it and what would fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ivedit import experiments
from ivedit.config.fields import show
from ivedit.config.layers import Layer
from ivedit.errors import ConfigError
from ivedit.sweeping.parse import Entry, arguments_of
from ivedit.sweeping.spec import COMPARED, Arm, Comparison, Objective

__all__ = ["arms", "claims", "experiment_file", "layer_of", "objectives", "seeds", "settings"]

DIRECTIONS = ("maximize", "minimize")


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
    for setting in layer_of(key, entry, problems).settings:
        name = setting.key if setting.entry is None else f"{setting.key}.{setting.entry}"
        found[name] = Entry(setting.value, entry.source)
    return arguments_of(found)


def layer_of(key: str, entry: Entry, problems: list[str]) -> Layer:
    """A mapping of a run's settings, dotted or nested, taken apart; unknown keys are answered with the nearest."""
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


def claims(entry: Entry, names: list[str], problems: list[str]) -> tuple[Comparison, ...]:
    """The declared family: ``{better: ARM, than: ARM}`` each, with ``metric`` (of `COMPARED`) if it is not success."""
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
        if claim.metric not in COMPARED:
            problems.append(
                f"claims: metric: {claim.metric} is not one of {', '.join(COMPARED)}, which the report compares "
                f"({entry.source})"
            )
        if claim.better == claim.than:
            problems.append(f"claims: {claim.better!r} is compared with itself ({entry.source})")
        if claim in found:
            problems.append(f"claims: {show(item)} is listed twice ({entry.source}); name it once")
        found.append(claim)
    return tuple(found)
