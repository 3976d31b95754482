"""What a sweep consists of: its stages, and the slots of each.

A search is one stage. A grid is one stage (``final``: every arm with every seed), or two: ``tune`` runs every arm with
every value of the tuned settings, on validation clips, and ``final`` then uses each arm's own best value. Both have
the same budget for every arm.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from ivedit.config import to_dict
from ivedit.config.compose import compose
from ivedit.config.fields import show
from ivedit.errors import ConfigError, IveditError
from ivedit.recording import telling
from ivedit.runfolder import write_json_atomic, write_text_atomic
from ivedit.sweeping.parse import RECORD
from ivedit.sweeping.spec import Arm, Cell, SlotResult, Stage, Sweep, changed_message, changes

__all__ = [
    "FINAL", "SEARCH", "TUNE", "at_the_edge", "build_stage", "choose", "keep_definition", "stages", "sweep_yaml",
    "undecided_stage",
]  # fmt: skip

TUNE, FINAL, SEARCH = "tune", "final", "search"
DEFINITIONS = "definitions.json"

Chosen = Mapping[str, Mapping[str, Any]]


def stages(sweep: Sweep) -> list[str]:
    """The names of the sweep's stages, in the order in which they run."""
    if sweep.kind == "search":
        return [SEARCH]
    return [TUNE, FINAL] if sweep.tune else [FINAL]


def build_stage(sweep: Sweep, name: str, finished: Callable[[str], Sequence[SlotResult]]) -> Stage:
    """A stage with its slots.

    Args:
        sweep: From `ivedit.sweeping.resolve`.
        name: One of `stages`.
        finished: The results of an earlier stage, by its name; asked only for what this one needs.

    Raises:
        IveditError: The stage before has not ended, or left an arm without any value to choose.
    """
    if name not in stages(sweep):
        raise ValueError(f"sweep {sweep.name} has no stage {name!r}; it has {', '.join(stages(sweep))}")
    if name == SEARCH:
        return _search_stage(sweep)
    if name == TUNE:
        return _grid_stage(sweep, TUNE, _tuning_cells(sweep))
    return _grid_stage(sweep, FINAL, _final_cells(sweep, choose(sweep, finished(TUNE)) if sweep.tune else None))


def undecided_stage(sweep: Sweep, name: str) -> Stage:
    """As `build_stage` before anything has run: cells that wait for a choice say so instead of a value."""
    if name == FINAL and sweep.tune:
        waiting = {arm.name: dict.fromkeys(sweep.tune.space, "(chosen by tune)") for arm in sweep.arms}
        return _grid_stage(sweep, FINAL, _final_cells(sweep, waiting))
    return build_stage(sweep, name, lambda _: ())


def _search_stage(sweep: Sweep) -> Stage:
    definition = {
        "kind": "search",
        "space": {key: space.as_dict() for key, space in sweep.space.items()},
        "objectives": {objective.metric: objective.direction for objective in sweep.objectives},
        "settings": {key: value for key, value in _resolved(sweep.settings).items() if key not in sweep.space},
    }
    return Stage(
        sweep=sweep.name, name=SEARCH, n_trials=sweep.n_trials or 0, cells=None, space=sweep.space,
        base=sweep.settings, objectives=sweep.objectives, sampler=sweep.sampler, pruner=sweep.pruner,
        prior=sweep.prior, definition=_plain(definition),
    )  # fmt: skip


def _grid_stage(sweep: Sweep, name: str, cells: tuple[Cell, ...]) -> Stage:
    tune = sweep.tune
    objectives = sweep.objectives if name == FINAL or tune is None else (tune.objective,)
    extra = tune.settings if name == TUNE and tune else ()
    definition: dict[str, Any] = {
        "kind": "grid",
        "arms": {arm.name: _resolved((*_arguments(sweep, arm), *extra)) for arm in sweep.arms},
        "objectives": {objective.metric: objective.direction for objective in objectives},
    }
    if tune is not None:
        definition["tune"] = {
            "space": {key: list(choice.choices) for key, choice in tune.space.items()},
            "seeds": list(tune.seeds),
            "settings": list(tune.settings),
            "objective": {tune.objective.metric: tune.objective.direction},
        }
    return Stage(
        sweep=sweep.name, name=name, n_trials=len(cells), cells=cells, space={}, base=(), objectives=objectives,
        sampler=sweep.sampler, pruner=None, prior=(), definition=_plain(definition),
    )  # fmt: skip


def _plain(definition: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON, so that what was stored and what is computed compare equal."""
    plain: dict[str, Any] = json.loads(json.dumps(definition))
    return plain


def _resolved(arguments: Sequence[str]) -> dict[str, str]:
    """What the run's result rests on, flattened: settings that differ from the schema's defaults and a few always."""
    return {key: value for key, value in telling(to_dict(compose(arguments).config)).items() if key != "seed"}


def _arguments(sweep: Sweep, arm: Arm) -> tuple[str, ...]:
    """The arm's experiment, what holds for all arms, and then what is the arm's own."""
    return (*arm.settings[:1], *sweep.settings, *arm.settings[1:])


def _tuning_cells(sweep: Sweep) -> tuple[Cell, ...]:
    assert sweep.tune is not None
    tune, cells = sweep.tune, []
    for seed, point, arm in itertools.product(tune.seeds, _points(sweep), sweep.arms):
        arguments = (*_arguments(sweep, arm), *tune.settings)
        cells.append(_cell(arm, seed, arguments, point, f"-{_words(point)}"))
    return tuple(cells)


def _final_cells(sweep: Sweep, chosen: Chosen | None) -> tuple[Cell, ...]:
    """Seed by seed, so that a seed appended later adds slots behind those that exist."""
    return tuple(
        _cell(arm, seed, _arguments(sweep, arm), chosen[arm.name] if chosen else {}, "")
        for seed, arm in itertools.product(sweep.seeds, sweep.arms)
    )


def _cell(arm: Arm, seed: int, arguments: tuple[str, ...], tuned: Mapping[str, Any], word: str) -> Cell:
    own = (*(f"{key}={show(value)}" for key, value in tuned.items()), f"name={arm.name}", f"seed={seed}")
    return Cell(f"{arm.name}{word}-seed{seed}", arm.name, seed, (*arguments, *own), dict(tuned))


def _points(sweep: Sweep) -> list[dict[str, Any]]:
    """Every combination of the tuned settings' values, in the order given."""
    assert sweep.tune is not None
    space = sweep.tune.space
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*(s.choices for s in space.values()))]


def _words(point: Mapping[str, Any]) -> str:
    """A point as part of a folder's name: ``lr0.002``."""
    return "-".join(re.sub(r"[^A-Za-z0-9.]", "_", f"{key.rpartition('.')[2]}{show(v)}") for key, v in point.items())


def choose(sweep: Sweep, results: Sequence[SlotResult]) -> dict[str, dict[str, Any]]:
    """Each arm's best point of the tuning stage: by the mean of the objective over the tuning seeds.

    A point counts when all its seeds have ended well; of equal points the first in the file's order is taken.

    Raises:
        IveditError: Slots have not ended, or an arm has no point that counts.
    """
    assert sweep.tune is not None
    tune = sweep.tune
    expected = len(_tuning_cells(sweep))
    ended = [result for result in results if result.state in ("COMPLETE", "FAIL", "PRUNED")]
    if len(ended) < expected:
        raise IveditError(f"stage {TUNE} has not ended: {len(ended)} of {expected} slots have")
    scores: dict[str, dict[str, list[float]]] = {arm.name: {} for arm in sweep.arms}
    for result in ended:
        if result.cell is not None and result.cell.arm in scores and result.values:
            scores[result.cell.arm].setdefault(show(dict(result.cell.tuned)), []).append(result.values[0])
    sign = 1 if tune.objective.direction == "maximize" else -1
    chosen: dict[str, dict[str, Any]] = {}
    for arm, by_point in scores.items():
        best: float | None = None
        for point in _points(sweep):
            values = by_point.get(show(point), [])
            mean = sign * math.fsum(values) / len(values) if len(values) == len(tune.seeds) else None
            if mean is not None and (best is None or mean > best):
                best, chosen[arm] = mean, point
        if best is None:
            raise IveditError(
                f"arm {arm}: no run of stage {TUNE} ended well, so there is no {', '.join(tune.space)} to choose; "
                f"see the reasons with --status"
            )
    return chosen


def at_the_edge(sweep: Sweep, chosen: Chosen) -> list[str]:
    """Arms whose best value is the smallest or largest that was tried: a better one may lie beyond.

    Of settings with at least three numbers to choose from, ``ARM KEY=VALUE`` each.
    """
    assert sweep.tune is not None
    found = []
    for key, choice in sweep.tune.space.items():
        numbers = [value for value in choice.choices if isinstance(value, (int, float)) and not isinstance(value, bool)]
        if len(numbers) >= 3:
            ends = (min(numbers), max(numbers))
            found += [f"{arm} {key}={show(point[key])}" for arm, point in chosen.items() if point[key] in ends]
    return found


def keep_definition(sweep: Sweep) -> None:
    """Write what the sweep is into its folder, or refuse to mix it with another sweep of the same name.

    ``sweep.yaml`` holds the sweep as a file, ``definitions.json`` what each stage's results rest on. More trials and
    appended seeds are no change; nor is how the sweep runs (workers, storage, sampler, pruner, retries).

    Raises:
        ConfigError: The folder holds results of another definition; names what changed and both ways out.
        IveditError: The folder cannot be written.
    """
    now = {name: dict(undecided_stage(sweep, name).definition) for name in stages(sweep)}
    seeds = list(sweep.seeds)
    path = sweep.folder / DEFINITIONS
    if path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            before, old_seeds = stored["stages"], stored["seeds"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IveditError(f"cannot read {path}: {error}; restore it, or use another name=") from error
        different = [f"stage {name}: " + ("new" if name in now else "gone") for name in sorted({*before} ^ {*now})]
        for name in now:  # stages share much; a change is told once
            different += [line for line in changes(before.get(name, {}), now[name]) if name in before]
        if seeds[: len(old_seeds)] != old_seeds:
            different.append(f"seeds: {show(old_seeds)} -> {show(seeds)}; seeds can only be appended")
        if different:
            raise ConfigError(changed_message(sweep.folder, different))
    try:
        sweep.runs.mkdir(parents=True, exist_ok=True)
        write_text_atomic(sweep.folder / RECORD, sweep_yaml(sweep))
        write_json_atomic(path, {"stages": now, "seeds": seeds})
    except OSError as error:
        reason = error.strerror or str(error)
        raise IveditError(f"cannot write the sweep's folder {sweep.folder} (output_dir): {reason}") from error


def sweep_yaml(sweep: Sweep) -> str:
    """The sweep as a file that reads back to the same sweep; passwords are left out of its addresses."""
    text = yaml.safe_dump(dict(sweep.definition), sort_keys=False, allow_unicode=True, width=120)
    return re.sub(r"(\w[\w+.-]*://[^\s/:@]*):[^\s/@]+@", r"\1@", text)
