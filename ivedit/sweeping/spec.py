"""What a sweep is, as plain data: stages of slots, each slot one child run of `ivedit.run`.

`ivedit.sweeping.plan` makes these from a YAML file and the command line; `ivedit.sweeping.study` keeps a stage in an
Optuna storage; workers claim its slots. Nothing heavy is imported here: a sweep's parent stays light, and `--help`,
`--dry-run` and every error about a sweep file answer at once.

A grid's slot has its settings from the start (`Cell`: an arm and a seed). A search's slot gets its parameters from the
sampler when a worker claims it. Slots are numbered 0 .. ``n_trials - 1`` inside a stage, and the number of a slot never
changes: its run folder is named after it, and every attempt at it continues that folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ivedit.config.fields import show

__all__ = [
    "COMPARED", "Arm", "Cell", "Choice", "Comparison", "Objective", "PriorStudy", "PrunerSpec", "Range", "SamplerSpec",
    "SlotResult", "Stage", "Sweep", "Tune", "changed_message", "changes", "definition_hash",
]  # fmt: skip

Direction = Literal["maximize", "minimize"]
State = Literal["WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAIL"]

COMPARED = ("success", "edited_psnr", "kept_psnr")
"""What a grid's report compares, and so what a claim can be about; success first."""


@dataclass(frozen=True)
class Objective:
    """What makes a run better.

    ``metric`` is read from the finished run folder: a metric of the run's own row in results.json (``success``,
    ``edited_psnr``: the mean over clips), the last value of a metric in metrics.jsonl (``val/loss``,
    ``train/pairs_per_second``: names with a slash), or a fact of the run (``trained_weights``, ``seconds_per_clip``).
    """

    metric: str
    direction: Direction = "maximize"


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; ``whole``: integers. ``step`` and ``log`` exclude each other."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def values(self) -> tuple[float, ...] | None:
        """Every value of a stepped or whole linear range; None when there is no end of them."""
        step = self.step if self.step is not None else (1 if self.whole and not self.log else None)
        if step is None:
            return None
        count = int((self.high - self.low) / step + 1e-9) + 1
        found = [self.low + i * step for i in range(count)]
        return tuple(int(value) if self.whole else value for value in found)

    def contains(self, value: Any) -> bool:
        """Whether the sampler could have drawn ``value``."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            return False
        if self.whole and value != int(value):
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-6

    def as_dict(self) -> dict[str, Any]:
        """As the YAML writes it."""
        found: dict[str, Any] = {"low": self.low, "high": self.high}
        if self.log:
            found["log"] = True
        return found | ({"step": self.step} if self.step is not None else {})


@dataclass(frozen=True)
class Choice:
    """One of these values: strings, numbers or truth values, as the setting wants them; None is YAML's null."""

    choices: tuple[str | float | int | bool | None, ...]

    def values(self) -> tuple[Any, ...]:
        """Every value."""
        return self.choices

    def contains(self, value: Any) -> bool:
        """Whether the sampler could have drawn ``value``."""
        return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in self.choices)

    def as_dict(self) -> dict[str, Any]:
        """As the YAML writes it."""
        return {"choices": list(self.choices)}


@dataclass(frozen=True)
class SamplerSpec:
    """Which Optuna sampler proposes parameters; ``seed`` is the base of the random numbers that each slot has."""

    name: str = "tpe"
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PrunerSpec:
    """Which Optuna pruner ends hopeless trials early, judged by a metric of metrics.jsonl by optimiser step."""

    name: str
    metric: str = "val/loss"
    direction: Direction = "minimize"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PriorStudy:
    """The best ``best`` finished trials of another study of the same storage are run first here."""

    study: str
    best: int = 5


@dataclass(frozen=True)
class Arm:
    """One row of an ablation table: a name and the settings that make it, ``experiment=...`` first."""

    name: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """A claim of the declared family: arm ``better`` has more ``metric`` (of `COMPARED`) than arm ``than``."""

    better: str
    than: str
    metric: str = "success"


@dataclass(frozen=True)
class Tune:
    """Each arm's own best value of some settings, chosen by the same budget before the final runs.

    ``space`` maps a setting to the values tried (their product is); ``seeds`` are not the final ones; ``settings`` hold
    during tuning only, and keep test clips closed (``evaluation.split=val``).
    """

    space: Mapping[str, Choice]
    seeds: tuple[int, ...]
    settings: tuple[str, ...]
    objective: Objective


@dataclass(frozen=True)
class Cell:
    """A grid's slot: ``settings`` are the arguments of `ivedit.run`, ``experiment=...`` first, seed and name included.

    ``tuned`` holds what a stage before chose for this arm, or what a tuning stage tries here.
    """

    label: str
    arm: str | None
    seed: int
    settings: tuple[str, ...]
    tuned: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A study of exactly ``n_trials`` slots.

    ``cells`` are a grid's, one per slot; None: a search over ``space`` from the settings ``base``. ``prior`` holds
    parameters (by setting) that are run first, and studies to take such from. ``definition`` is what the results rest
    on, as plain containers; its hash is in the study's name, so that results of different definitions never mix.
    """

    sweep: str
    name: str
    n_trials: int
    cells: tuple[Cell, ...] | None
    space: Mapping[str, Range | Choice]
    base: tuple[str, ...]
    objectives: tuple[Objective, ...]
    sampler: SamplerSpec
    pruner: PrunerSpec | None
    prior: tuple[Mapping[str, Any] | PriorStudy, ...]
    definition: Mapping[str, Any]

    @property
    def space_hash(self) -> str:
        """8 hex digits of the definition."""
        return definition_hash(self.definition)

    @property
    def study(self) -> str:
        """The study's name in the storage; `study_prefix` is what all definitions of this stage share."""
        return f"{self.study_prefix}{self.space_hash}"

    @property
    def study_prefix(self) -> str:
        """``<sweep>-<stage>-``: other studies that start so are the same stage with another definition."""
        return f"{self.sweep}-{self.name}-"

    def folder_name(self, slot: int) -> str:
        """The slot's run folder, under ``<sweep folder>/runs``; it does not depend on drawn parameters."""
        label = self.cells[slot].label if self.cells is not None else "trial"
        return f"{self.name}-{slot:04d}-{label}"

    def settings(self, slot: int, params: Mapping[str, Any] | None = None) -> tuple[str, ...]:
        """The ``key=value`` arguments of the slot's child run; ``params``: what was drawn for a search's slot."""
        if self.cells is not None:
            return self.cells[slot].settings
        drawn = (f"{key}={show(value)}" for key, value in (params or {}).items())
        return (*self.base, *drawn, f"name={self.sweep}-{slot:04d}")


@dataclass(frozen=True)
class Sweep:
    """A whole sweep as it was asked for: the file, the command line over it, everything checked.

    ``folder`` is ``<output_dir>/<name>``. ``settings`` hold for every child (``experiment=`` first in a search).
    ``n_trials`` is a search's; a grid's follows from arms, seeds and tuning. ``storage`` None: the journal file of the
    folder. ``tracking_uri`` None: MLflow in ``<output_dir>/mlflow.db``, unless ``tracking_kind`` is ``none``.
    ``threads_per_trial`` None: the cores shared out. ``trial_minutes`` None: no limit. ``definition`` is the resolved
    content as plain containers, which ``sweep.yaml`` of the folder keeps.
    """

    name: str
    kind: Literal["grid", "search"]
    summary: str
    folder: Path
    settings: tuple[str, ...]
    objectives: tuple[Objective, ...]
    definition: Mapping[str, Any]
    arms: tuple[Arm, ...] = ()
    seeds: tuple[int, ...] = ()
    tune: Tune | None = None
    claims: tuple[Comparison, ...] = ()
    n_trials: int | None = None
    space: Mapping[str, Range | Choice] = field(default_factory=dict)
    sampler: SamplerSpec = field(default_factory=SamplerSpec)
    pruner: PrunerSpec | None = None
    prior: tuple[Mapping[str, Any] | PriorStudy, ...] = ()
    storage: str | None = None
    tracking_kind: str = "mlflow"
    tracking_uri: str | None = None
    experiment: str = "ivedit"
    workers: int = 1
    gpus_per_trial: int = 1
    trials_per_gpu: int = 1
    threads_per_trial: int | None = None
    trial_minutes: float | None = None
    retries: int = 2
    lease_seconds: float = 60.0
    keep_checkpoints: Literal["all", "editor", "none"] = "editor"
    launcher: Literal["local", "slurm"] = "local"
    slurm: Mapping[str, str] = field(default_factory=dict)

    @property
    def output_dir(self) -> Path:
        """The folder that holds this sweep's folder, and MLflow's store unless one is named."""
        return self.folder.parent

    @property
    def runs(self) -> Path:
        """The folder of the run folders, one per slot."""
        return self.folder / "runs"


@dataclass(frozen=True)
class SlotResult:
    """What is known about a slot: of its living or last trial.

    ``values`` follow the stage's objectives, None until COMPLETE (a pruned trial has none). ``attempts`` counts the
    trials made for the slot, the first included. ``params`` are a search's drawn parameters.
    """

    stage: str
    slot: int
    label: str
    state: State
    values: tuple[float, ...] | None
    run_folder: Path
    attempts: int
    reason: str | None = None
    cell: Cell | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    trial: int | None = None


def definition_hash(definition: Mapping[str, Any]) -> str:
    """8 hex digits, equal for equal plain containers whatever their order of keys."""
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:8]


def changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two definitions, a line per place: ``space.train.lr.high: 0.01 -> 0.1``."""
    lines: list[str] = []
    for key in (*before, *(key for key in now if key not in before)):
        old, new = before.get(key), now.get(key)
        place = f"{prefix}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += changes(old, new, f"{place}.")
        elif key not in now:
            lines.append(f"{place}: {show(old)} -> gone")
        elif key not in before:
            lines.append(f"{place}: new, {show(new)}")
        elif old != new:
            lines.append(f"{place}: {show(old)} -> {show(new)}")
    return lines


def changed_message(place: Path | str, different: Sequence[str]) -> str:
    """The one message about results of another definition: what changed and both ways out."""
    different = list(dict.fromkeys(different))
    shown = "; ".join(different[:6]) + (f"; and {len(different) - 6} more" if len(different) > 6 else "")
    return (
        f"{place} holds a sweep with another definition, and their results must not mix: {shown}. "
        "Give this one a name of its own (name=NEW), or restore what changed to continue the old one"
    )
