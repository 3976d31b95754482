"""Every key of a sweep file, declared once: name, type, default, range and meaning.

Plain settings are declared as a run's are (`ivedit.config.schema`), so help, pages and errors treat both alike. The
keys that hold a list or a table of their own (arms, space, tune, ...) are described in `STRUCTURES`;
`ivedit.sweeping.parse` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from ivedit.config.schema import declare

__all__ = ["FOR_KIND", "PRUNERS", "SAMPLERS", "STRUCTURES", "PrunerConfig", "SamplerConfig", "SweepConfig"]

SAMPLERS = ("tpe", "gp", "cmaes", "nsgaii", "random", "grid")
PRUNERS = ("none", "median", "hyperband", "percentile")


@dataclass
class SamplerConfig:
    """Search: which Optuna sampler proposes the next parameters."""

    name: str = declare(
        "tpe", "tpe, gp, cmaes (numbers only, one objective), nsgaii, random, grid (every combination).",
        choices=SAMPLERS,
    )
    seed: int = declare(0, "Base of its random numbers; every slot has its own.", min=0)


@dataclass
class PrunerConfig:
    """Search: which Optuna pruner ends hopeless trials early; not with two objectives."""

    name: str = declare("none", "none, median, hyperband or percentile.", choices=PRUNERS)
    metric: str = declare("val/loss", "The metric of metrics.jsonl that it judges, by optimiser step.")
    direction: str = declare("minimize", "Which way that metric is better.", choices=("minimize", "maximize"))


@dataclass
class SweepConfig:
    """A whole sweep."""

    name: str = declare("sweep", "Name of the sweep, of its folder and its studies; without it the file's name.")
    summary: str = declare("", "One line: what the sweep compares or looks for.")
    kind: str = declare("grid", "grid: arms x seeds; search: Optuna proposes the settings.", choices=("grid", "search"))
    experiment: str = declare(
        "imvideoedit", "The experiment of a search, and of a grid's arms that name none."
    )
    n_trials: Optional[int] = declare(
        None, "Search: trials in all, finished and pruned ones; a restart runs what is missing. null: with the grid "
        "sampler, every combination.", min=1,
    )  # fmt: skip
    output_dir: str = declare(
        "runs", "The sweep's folder is output_dir/name; MLflow's store is output_dir/mlflow.db if none is named."
    )
    storage: Optional[str] = declare(
        None, "Where Optuna keeps the studies. null: a journal file in the sweep's folder (one machine, or a disk that "
        "machines share and whose file locks hold); sqlite:///FILE; postgresql://USER@HOST/NAME or grpc://HOST:PORT "
        "(many machines).",
    )  # fmt: skip
    workers: int = declare(1, "Children at once on this machine; `--workers N` is the same.", min=1)
    gpus_per_trial: int = declare(1, "GPUs of one child, where the machine has any.", min=1)
    trials_per_gpu: int = declare(1, "Children that share one GPU.", min=1)
    threads_per_trial: Optional[int] = declare(None, "CPU threads of one child; null: the cores shared out.", min=1)
    trial_minutes: Optional[float] = declare(
        None, "A child that takes longer is stopped and its slot counted as failed; null: no limit.", above=0
    )
    retries: int = declare(2, "How often a slot whose child failed is tried again; lost workers do not count.", min=0)
    lease_seconds: float = declare(
        60.0, "A worker that says nothing for so long is taken for dead, and its slot is given to another.", min=5
    )
    keep_checkpoints: str = declare(
        "editor", "What stays of a finished child's checkpoints: all, the trained modules, or none.",
        choices=("all", "editor", "none"),
    )
    launcher: str = declare(
        "local", "local: children of this process; slurm: each worker is a SLURM job (extra `ivedit[slurm]`).",
        choices=("local", "slurm"),
    )
    slurm: dict[str, str] = declare(
        {}, "What submitit passes to SLURM, e.g. {partition: gpu, timeout_min: 600, gpus_per_node: 1}."
    )
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    pruner: PrunerConfig = field(default_factory=PrunerConfig)


STRUCTURES = {
    "arms": (
        "list",
        "Grid: the rows of the table. An experiment's name, or {NAME: [key=value, ...]} for settings of your own, with "
        "experiment=... among them if it is not the sweep's.",
    ),
    "seeds": ("list of int", "Grid: every arm is run with each. More of them may be appended later."),
    "settings": (
        "dict", "Settings of every child, as in an experiment file; key=value on the command line adds to them.",
    ),
    "objectives": (
        "dict",
        "What is measured, {METRIC: maximize or minimize}; a search may have two. A metric of the run's own row in "
        "results.json (success, edited_psnr), the last value of one in metrics.jsonl (val/loss), or a fact "
        "(trained_weights, seconds_per_clip). Default {success: maximize}.",
    ),
    "tune.space": ("dict", "Grid: settings that every arm chooses for itself first, {KEY: [VALUE, ...]}."),
    "tune.seeds": ("list of int", "Grid: seeds of the choosing runs; default [1000], which no final run uses."),
    "tune.settings": (
        "dict", "Grid: settings of the choosing runs; they must keep test clips closed. Default evaluation.split=val.",
    ),
    "tune.objective": ("dict", "Grid: what the choice goes by, {METRIC: DIRECTION}; default: the first objective."),
    "claims": (
        "list", "Grid: the family of claims that the report tests, {better: ARM, than: ARM}; metric: edited_psnr or "
        "kept_psnr, if not success.",
    ),
    "space": (
        "dict",
        "Search: {KEY: {low: 1e-4, high: 1e-2, log: true}}, {low: 16, high: 64, step: 16} or {choices: [64, 128]}, for "
        "any setting of a run.",
    ),
    "prior": (
        "list", "Search: run first: {KEY: VALUE, ...} each, or {study: NAME, best: 5} of the same storage.",
    ),
    "sampler.options": ("dict", "Search: passed to Optuna's sampler, e.g. {n_startup_trials: 8}."),
    "pruner.options": ("dict", "Search: passed to Optuna's pruner, e.g. {n_warmup_steps: 200}."),
}  # fmt: skip
"""Key -> (type in words, meaning)."""

FOR_KIND = {
    "grid": ("arms", "seeds", "tune", "claims"),
    "search": ("n_trials", "space", "prior", "sampler", "pruner"),
}
"""Keys that mean something to one kind of sweep only."""
