"""Rules between the keys of a sweep, and between them and the runs that they start.

Every distinct run of the sweep is composed as `ivedit.run` would compose it, so that what cannot run is refused before
a child is started. Each fault is one line that names what is wrong, who wrote it and the fix.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ivedit import experiments
from ivedit.config import Config, to_dict
from ivedit.config.compose import compose
from ivedit.config.fields import BadValue, coerce, fields, show
from ivedit.config.rules import CONTROLS
from ivedit.errors import ConfigError, or_nearest
from ivedit.sweeping.parse import Given
from ivedit.sweeping.spec import Arm, Choice, Objective, PrunerSpec, Range, SamplerSpec, Tune

__all__ = ["Runs", "grid_faults", "launch_faults", "search_faults", "setting_faults"]

UNEVALUATED = ("trained_weights",)
"""Objectives that are known without an evaluation."""

METRICS = (
    "clip_direction", "clip_frames", "clip_text", "dino_frames", "edit_progress", "edited_psnr", "edited_ssim",
    "flicker_ratio", "kept_lpips", "kept_psnr", "kept_ssim", "lpips", "motion_agreement", "motion_ratio", "pickscore",
    "raft_warp_error", "sharpness_ratio", "success", "warp_error",
)  # fmt: skip
"""Metrics of an evaluation, known without importing it (a test compares); plugins may bring others."""

STORAGES = ("sqlite", "postgres", "postgresql", "postgresql+psycopg", "grpc")
MOST_POINTS = 24
"""Combinations of a space's values that are all composed; of a larger space, every value is, one at a time."""


@dataclass
class Runs:
    """Composes the runs of a sweep and gathers what is wrong with them, a fault that all share told once."""

    given: Given
    composed: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict)

    def compose(self, label: str, arguments: Sequence[str]) -> Config | None:
        """The configuration of one run; None when it has faults, which are kept under ``label``."""
        where = experiments.shown(self.given.file)
        self.composed += 1
        try:
            return compose(arguments, origin=where).config
        except ConfigError as error:
            for problem in error.problems:
                for key, entry in self.given.settings.items():
                    if entry.text is not None:  # only then was it written on the command line
                        problem = problem.replace(f"{where}: {key}={entry.text}", entry.source)
                self.faults.setdefault(problem, []).append(label)
            return None

    def problems(self) -> list[str]:
        """All faults, each with the runs that have it unless all do."""
        return [
            problem if len(labels) == self.composed else f"{', '.join(dict.fromkeys(labels))}: {problem}"
            for problem, labels in self.faults.items()
        ]


def setting_faults(given: Given) -> list[str]:
    """Values of ``settings:`` that do not fit their setting, and settings that belong to the sweep itself.

    What is reported here is taken out of ``given.settings``, so that it is not reported for every run again.
    """
    problems = []
    for key, entry in list(given.settings.items()):
        reason = {
            "name": "the sweep names its runs; `name=` at the top level names the sweep",
            "summary": "each experiment has its own",
            "output_dir": "set it at the top level",
            "resume": "each run continues its own folder by itself",
        }.get(key)
        if key == "seed" and given.values["kind"] == "grid":
            reason = "a grid has `seeds:`"
        if reason is None and key in fields():
            try:
                coerce(fields()[key], entry.value, entry.text)
            except BadValue as bad:
                reason = str(bad)
        if reason is not None:
            problems.append(f"{key}: {reason} ({entry.source})")
            del given.settings[key]
    return problems


def launch_faults(given: Given) -> Iterator[str]:
    """What is wrong with where and how the sweep is to run."""
    value = given.values
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value["name"]):
        yield (
            f"name: {show(value['name'])} names a folder ({given.source('name')}); "
            "use letters, digits, dots, dashes and underscores"
        )
    if value["gpus_per_trial"] > 1 and value["trials_per_gpu"] > 1:
        yield (
            f"gpus_per_trial={value['gpus_per_trial']} ({given.source('gpus_per_trial')}), "
            f"trials_per_gpu={value['trials_per_gpu']} ({given.source('trials_per_gpu')}): "
            "children either share a GPU or have several; set one of the two to 1"
        )
    storage = value["storage"]
    scheme = storage.partition("://")[0] if storage else None
    if storage and not storage.endswith(".journal") and ("://" not in storage or scheme not in STORAGES):
        yield (
            f"storage: {show(storage)} is no storage ({given.source('storage')}); write sqlite:///FILE, "
            "postgresql://USER@HOST/NAME, grpc://HOST:PORT or FILE.journal, or leave it out for a journal in the "
            "sweep's folder"
        )
    if value["launcher"] == "slurm" and scheme == "sqlite":
        yield (
            "launcher=slurm, storage=sqlite: SLURM's jobs run on many machines, which cannot share an sqlite file; "
            "use storage=postgresql://USER@HOST/NAME"
        )


def grid_faults(
    given: Given, settings: tuple[str, ...], arms: tuple[Arm, ...], seeds: tuple[int, ...], tune: Tune | None,
    objectives: tuple[Objective, ...],
) -> tuple[list[str], Config | None]:  # fmt: skip
    """What is wrong with a grid, and the configuration of one of its runs (None: none can run)."""
    problems = list(_said_twice(given, arms, tune))
    runs = Runs(given)
    first: Config | None = None
    seen: dict[str, str] = {}
    for arm in arms:
        label = f"arm {arm.name}"
        if arm.name in CONTROLS:
            problems.append(f"{label}: the name belongs to a control row ({given.source('arms')}); choose another")
        arguments = (*arm.settings[:1], *settings, *arm.settings[1:], f"name={arm.name}")
        config = runs.compose(label, [*arguments, f"seed={seeds[0] if seeds else 0}"])
        if config is None:
            continue
        first = first or config
        problems += [f"{label}: {fault}" for fault in _run_faults(config, given, objectives)]
        content = show({k: v for k, v in to_dict(config).items() if k not in ("name", "summary")})
        if content in seen:
            problems.append(
                f"arms {seen[content]} and {arm.name} are the same run ({given.source('arms')}); leave one out, or "
                "give it a setting of its own"
            )
        seen.setdefault(content, arm.name)
        if tune is not None:
            problems += _tune_faults(runs, label, arguments, tune, given)
    return runs.problems() + problems, first


def _said_twice(given: Given, arms: tuple[Arm, ...], tune: Tune | None) -> Iterator[str]:
    """Settings that would silently lose against another place."""
    for key, entry in given.settings.items():
        where = f"{key}={show(entry.value)} ({entry.source})"
        own = [arm.name for arm in arms if any(item.startswith(f"{key}=") for item in arm.settings[1:])]
        if own:
            yield f"{where}: the arms {', '.join(own)} set it themselves; leave one of the two out"
        if tune is not None and key in tune.space:
            yield f"{where}: every arm's own is chosen by tune; leave it out, or set tune=null"


def _tune_faults(runs: Runs, label: str, arguments: tuple[str, ...], tune: Tune, given: Given) -> Iterator[str]:
    for key, choice in tune.space.items():
        for value in choice.values()[1:]:
            runs.compose(f"{label} in tune", [*arguments, *tune.settings, f"{key}={show(value)}"])
    start = [f"{key}={show(choice.values()[0])}" for key, choice in tune.space.items()]
    config = runs.compose(f"{label} in tune", [*arguments, *tune.settings, *start])
    if config is not None:
        yield from (f"{label} in tune: {fault}" for fault in _run_faults(config, given, (tune.objective,)))
        yield from (f"{label} in tune: {fault}" for fault in _opens_test_clips(config, "tune.settings"))


def _opens_test_clips(config: Config, key: str) -> Iterator[str]:
    """Choosing by test clips would make the numbers on them worthless."""
    if config.task == "edit" and config.evaluation.enabled and config.evaluation.split != "val":
        yield (
            f"evaluation.split={config.evaluation.split}: settings are not chosen on test clips; "
            f"set evaluation.split=val in {key}"
        )


def _run_faults(config: Config, given: Given, objectives: Iterable[Objective]) -> Iterator[str]:
    train, gpus = config.train, given.values["gpus_per_trial"]
    if train.nodes > 1:
        yield f"train.nodes={train.nodes}: a sweep's child runs on one machine; set train.nodes=1"
    if train.devices > gpus and train.accelerator != "cpu":
        yield f"train.devices={train.devices}: a child has gpus_per_trial={gpus}; set gpus_per_trial={train.devices}"
    known = (*METRICS, *UNEVALUATED, "seconds_per_clip")
    for objective in objectives:
        if "/" not in objective.metric and objective.metric not in known and not config.plugins:
            yield (
                f"objective {objective.metric}: no run measures it; {or_nearest(objective.metric, known)} Metrics of "
                "training have a slash, such as val/loss"
            )
            continue
        evaluated = config.task == "edit" and config.evaluation.enabled
        other = "/" in objective.metric or objective.metric in UNEVALUATED or config.plugins
        if not evaluated and not other and (config.task == "edit" or config.task.startswith("pretrain_")):
            yield (
                f"objective {objective.metric}: it comes from an evaluation, and this run has none; set "
                "evaluation.enabled=true or choose a metric of training such as val/loss"
            )


def search_faults(
    given: Given, base: tuple[str, ...], space: Mapping[str, Range | Choice], sampler: SamplerSpec,
    pruner: PrunerSpec | None, objectives: tuple[Objective, ...], prior: Sequence[Any],
) -> tuple[list[str], Config | None]:  # fmt: skip
    """What is wrong with a search, and the configuration that it starts from (None: it cannot run)."""
    problems = [
        f"{key}={show(entry.value)} ({entry.source}): the search varies it; leave it out here or in space"
        for key, entry in given.settings.items()
        if key in space
    ]
    problems += _sampler_faults(given, space, sampler, objectives, prior)
    runs = Runs(given)
    config = runs.compose("the search's settings", base)
    if config is not None:
        problems += _run_faults(config, given, objectives)
        problems += _opens_test_clips(config, "settings")
        problems += _pruner_faults(config, given, pruner, objectives)
        for point in _corners(space):
            text = [f"{key}={show(value)}" for key, value in point.items()]
            runs.compose(f"trial with {', '.join(text)}", [*base, *text])
    elif pruner is not None and len(objectives) > 1:
        problems.append(_no_pruning(given))
    return runs.problems() + problems, config


def _corners(space: Mapping[str, Range | Choice]) -> Iterator[dict[str, Any]]:
    """Points whose runs are composed to see whether they can run."""
    ends = {key: _ends(item) for key, item in space.items()}
    choices = [[(key, value) for value in ends[key]] for key, item in space.items() if isinstance(item, Choice)]
    points = 1
    for values in choices:
        points *= len(values)
    if choices and points <= MOST_POINTS:
        yield from (dict(point) for point in itertools.product(*choices))
    else:
        yield from ({key: value} for values in choices for key, value in values)
    yield from ({key: value} for key, item in space.items() if isinstance(item, Range) for value in ends[key])


def _ends(item: Range | Choice) -> tuple[Any, ...]:
    return item.choices if isinstance(item, Choice) else (item.low, item.high)


def _sampler_faults(
    given: Given, space: Mapping[str, Range | Choice], sampler: SamplerSpec, objectives: tuple[Objective, ...],
    prior: Sequence[Any],
) -> Iterator[str]:  # fmt: skip
    name = f"sampler.name={sampler.name} ({given.source('sampler.name')})"
    n_trials = given.values["n_trials"]
    if len(objectives) > 2:
        yield f"objectives: {len(objectives)} are named ({given.source('objectives')}); a search has one or two"
    if sampler.name == "cmaes":
        words = [key for key, item in space.items() if isinstance(item, Choice)]
        if words:
            yield f"{name}: CMA-ES searches ranges of numbers, not choices ({', '.join(words)}); use sampler.name=tpe"
        elif len(space) == 1:
            yield f"{name}: CMA-ES needs two settings to search; use sampler.name=tpe"
        if len(objectives) > 1:
            yield f"{name}: CMA-ES has one objective; use sampler.name=nsgaii"
    if sampler.name == "grid":
        endless = [key for key, item in space.items() if item.values() is None]
        points = 1
        for item in space.values():
            points *= len(item.values() or ())
        if endless:
            yield f"{name}: a grid needs an end: give {', '.join(endless)} a step or choices"
        elif n_trials is not None and n_trials > points:
            yield (
                f"n_trials={n_trials} ({given.source('n_trials')}): the grid has {points} combinations; "
                "leave n_trials out to run them all"
            )
    elif n_trials is None and not any(problem.startswith("n_trials") for problem in given.problems):
        yield f"n_trials: a search with {name} needs its number of trials; write n_trials: 40"
    fixed = sum(isinstance(item, Mapping) for item in prior)
    if n_trials is not None and fixed > n_trials:
        yield (
            f"n_trials={n_trials} ({given.source('n_trials')}): prior has {fixed} trials to run first "
            f"({given.source('prior')}); set n_trials={fixed} or more"
        )


def _no_pruning(given: Given) -> str:
    return (
        f"pruner.name={given.values['pruner.name']} ({given.source('pruner.name')}): Optuna cannot prune with two "
        "objectives; set pruner.name=none or name one objective"
    )


def _pruner_faults(
    config: Config, given: Given, pruner: PrunerSpec | None, objectives: tuple[Objective, ...]
) -> Iterator[str]:
    if pruner is None:
        return
    if len(objectives) > 1:
        yield _no_pruning(given)
    where = f"pruner.metric={pruner.metric} ({given.source('pruner.metric')})"
    if "/" not in pruner.metric:
        yield f"{where}: it must be a metric of metrics.jsonl, measured while training, such as val/loss"
    elif pruner.metric.startswith("val/") and config.train.validate_every == 0:
        yield f"{where}: train.validate_every=0 measures it at the end only; set it to a part of the run's steps"
