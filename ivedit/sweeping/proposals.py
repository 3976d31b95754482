"""Where a search's parameters come from: Optuna's samplers and pruners by the names that a sweep file uses.

A grid search is laid out slot by slot in advance instead of through Optuna's GridSampler, which lets two workers that
ask at the same moment evaluate the same point (its own documentation says so).
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import itertools
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ivedit.errors import ConfigError, or_nearest
from ivedit.sweeping.spec import Choice, PriorStudy, PrunerSpec, Range, SamplerSpec, Stage

__all__ = [
    "PRUNERS", "SAMPLERS", "check_options", "grid_points", "make_pruner", "make_sampler", "prior_params", "suggest",
    "without_advice",
]  # fmt: skip

SAMPLERS: Mapping[str, Any] = {
    "tpe": optuna.samplers.TPESampler,
    "gp": optuna.samplers.GPSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
    "random": optuna.samplers.RandomSampler,
    "grid": None,
}
PRUNERS: Mapping[str, Any] = {
    "median": optuna.pruners.MedianPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "none": optuna.pruners.NopPruner,
}


def check_options(kind: str, name: str, options: Mapping[str, Any]) -> list[str]:
    """What is wrong with a sampler's or pruner's name and options, a plain line each.

    Args:
        kind: ``sampler`` or ``pruner``.
        name: as in `SAMPLERS` and `PRUNERS`.
        options: keyword arguments of Optuna's class.
    """
    known = SAMPLERS if kind == "sampler" else PRUNERS
    if name not in known:
        return [f"{kind}.name={name} is not known; {or_nearest(name, known)}"]
    taken = _parameters(known[name])
    wrong = [f"{kind}.options.{key}: {name} {_takes(key, taken)}" for key in options if key not in taken]
    if wrong:
        return wrong
    try:
        if kind == "sampler":
            make_sampler(SamplerSpec(name, 0, options), 0)
        else:
            make_pruner(PrunerSpec(name, options=options))
        if name == "hyperband":  # which looks at its options when the first trial reports
            halving = {key: value for key, value in options.items() if key != "max_resource"}
            optuna.pruners.SuccessiveHalvingPruner(**halving)
    except (TypeError, ValueError) as error:
        return [f"{kind}.options of {name}: {error}"]
    return []


def _parameters(made: Any) -> list[str]:
    """Options of an Optuna class that a YAML file can hold; the seed has a key of its own."""
    if made is None:
        return []
    plain = {"int", "float", "bool", "str", "None"}
    kinds = {name: str(p.annotation) for name, p in inspect.signature(made).parameters.items() if name != "seed"}
    kinds = {name: kind.removeprefix("<class '").removesuffix("'>") for name, kind in kinds.items()}
    return [name for name, kind in kinds.items() if set(kind.split(" | ")) <= plain]


def _takes(key: str, taken: list[str]) -> str:
    return f"has no such option; {or_nearest(key, taken)}" if taken else "takes no options"


def make_sampler(spec: SamplerSpec, slot: int, prior: Sequence[Any] = ()) -> BaseSampler:
    """The sampler that draws the parameters of ``slot``.

    Each slot has random numbers of its own, a hash of the sweep's seed and the slot. They stay the same however often
    workers died on the way, and two searches with neighbouring seeds share none (with seed + slot they would share
    all but one trial of a random search). A search that goes on from another study does not draw that one's again.
    """
    made = SAMPLERS[spec.name] or optuna.samplers.RandomSampler  # a grid's parameters are fixed beforehand
    told = [spec.seed, slot, *(source.study for source in prior if isinstance(source, PriorStudy))]
    seed = int.from_bytes(hashlib.sha256(repr(told).encode()).digest()[:4], "big")
    with without_advice():
        try:
            return made(seed=seed, **spec.options)
        except ImportError as error:
            raise ConfigError(f"sampler.name={spec.name} needs a package that is not installed: {error}") from error


def make_pruner(spec: PrunerSpec | None) -> BasePruner:
    """The pruner of a stage; one that never prunes where none is asked for."""
    with without_advice():
        return PRUNERS[spec.name](**spec.options) if spec is not None else optuna.pruners.NopPruner()


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Optuna's warnings, kept off the screen: that a sampler is experimental, that a step does not reach ``high``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"optuna\.")
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def suggest(trial: optuna.Trial, name: str, space: Range | Choice) -> Any:
    """A value for a setting, fixed beforehand or drawn by the trial's sampler."""
    if isinstance(space, Choice):
        return trial.suggest_categorical(name, space.choices)
    if space.whole:
        return trial.suggest_int(name, int(space.low), int(space.high), step=int(space.step or 1), log=space.log)
    return trial.suggest_float(name, space.low, space.high, step=space.step, log=space.log)


def grid_points(stage: Stage) -> list[dict[str, Any]]:
    """Every point of a finite space once, in an order that the sampler's seed shuffles.

    A search with fewer trials than points takes the first of them, and more of the same when ``n_trials`` is raised.
    """
    every = [space.values() for space in stage.space.values()]
    if any(values is None for values in every):
        raise ConfigError("sampler.name=grid needs a finite space: give every range a step, or choices")
    points = [dict(zip(stage.space, values, strict=True)) for values in itertools.product(*[v or () for v in every])]
    random.Random(stage.sampler.seed).shuffle(points)
    return points


def prior_params(stage: Stage, storage: BaseStorage, where: str) -> list[dict[str, Any]]:
    """The parameters that a search runs first: those its file lists, and the best of other studies.

    Of another study, parameters that this space does not have, or not with that value, are left out.

    Raises:
        ConfigError: ``storage`` has no such study.
    """
    found: list[dict[str, Any]] = []
    for prior in stage.prior:
        if not isinstance(prior, PriorStudy):
            found.append(dict(prior))
            continue
        for trial in _best(prior, storage, where):
            kept = {
                name: value for name, value in trial.params.items()
                if name in stage.space and stage.space[name].contains(value)
            }  # fmt: skip
            if kept and kept not in found:
                found.append(kept)
    return found


def _best(prior: PriorStudy, storage: BaseStorage, where: str) -> list[FrozenTrial]:
    """The best complete trials of another study: by value, or by how many others beat them in every objective."""
    names = [study.study_name for study in storage.get_all_studies()]
    # A stage's study carries the hash of its definition, which nobody types.
    meant = [name for name in names if name == prior.study or name.rpartition("-")[0] == prior.study]
    if len(meant) != 1:
        problem = f"may be any of {', '.join(meant)}" if meant else or_nearest(prior.study, names)
        raise ConfigError(f"prior study {prior.study!r} in {where}: {problem}")
    number = storage.get_study_id_from_name(meant[0])
    trials = storage.get_all_trials(number, states=(TrialState.COMPLETE,))
    signs = [-1 if way == StudyDirection.MAXIMIZE else 1 for way in storage.get_study_directions(number)]
    costs = [[sign * value for sign, value in zip(signs, trial.values, strict=True)] for trial in trials]

    def beaten(cost: list[float]) -> int:
        return sum(all(a <= b for a, b in zip(other, cost, strict=True)) and other != cost for other in costs)

    order = sorted(range(len(trials)), key=lambda i: (beaten(costs[i]), costs[i], i))
    return [trials[i] for i in order[: prior.best]]
