"""What a sweep says about itself: ``--help``, ``--dry-run`` and the rows of sweeps/README.md."""

from __future__ import annotations

import shlex
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from ivedit import experiments
from ivedit.config.fields import fields, show
from ivedit.config.help import columns
from ivedit.config.layers import read_yaml
from ivedit.sweeping.parse import own_keys
from ivedit.sweeping.plan import FINAL, TUNE, stages, undecided_stage
from ivedit.sweeping.schema import STRUCTURES, SweepConfig
from ivedit.sweeping.spec import Stage, Sweep

__all__ = ["EXAMPLES", "OPTIONS", "dry_run", "help_text", "key_rows", "sweep_summaries"]

EXAMPLES = (
    ("sweep=smoke", "two arms, four children for learning rates and four to compare: minutes on a laptop"),
    ("sweep=ablations --dry-run", "the children that this sweep consists of; nothing is started"),
    ("sweep=ablations --workers 4", "run it, four children at once; the GPUs or CPU threads are shared out"),
    ("sweep=ablations name=short 'seeds=[0,1]' 'arms=[imvideoedit,ablation_no_gate]' tune=null", "a part of it"),
    ("sweep=editor_lr n_trials=20 train.max_steps=500 name=short_lr", "shorter trials, under a name of their own"),
    ("sweep=editor_lr storage=postgresql://me@server/sweeps", "the same on any number of machines joins one study"),
    ("sweep=ablations --launcher slurm --workers 8 'slurm={partition: gpu, timeout_min: 600}'", "as eight SLURM jobs"),
    ("sweep=runs/ablations --status", "every slot and its state, of a sweep that was started before"),
    ("sweep=./mine.yaml", "your own sweep file"),
)

OPTIONS = (
    ("--help", "this text"),
    ("--print-config", "print the sweep as it was resolved, as YAML, and stop"),
    ("--dry-run", "print every child's settings (or the search space) and how many there are, and stop"),
    ("--status", "print every slot and its state, and stop"),
    ("--report", "make the report of what there is so far (python -m ivedit.report), and stop"),
    ("--workers N", "children at once on this machine, as workers=N"),
    ("--launcher slurm", "each worker is a SLURM job, as launcher=slurm"),
    (
        "--serve HOST:PORT",
        "run Optuna's gRPC proxy at that address in front of storage=URL, for workers that cannot reach the database "
        "(they give storage=grpc://HOST:PORT); goes on until Ctrl-C",
    ),
)


def sweep_summaries() -> dict[str, tuple[str, str]]:
    """Kind and ``summary:`` line of each shipped sweep, by name."""
    found = {}
    for name in experiments.SWEEPS.names():
        content = read_yaml(experiments.SWEEPS.find(name))[0]
        found[name] = str(content.get("kind", "grid")), str(content.get("summary", ""))
    return found


def key_rows() -> Iterator[tuple[str, str, str, str]]:
    """Every key of a sweep: name, type and range in words, default as typed (empty: none), meaning."""
    table = fields(SweepConfig)
    for key in own_keys():
        if key in STRUCTURES:
            kind, meaning = STRUCTURES[key]
            yield key, kind, "", meaning
        else:
            item = table[key]
            kind = "; ".join(text for text in (item.type_text, item.range_text) if text)
            yield key, kind, show(item.default), item.help


def help_text(width: int | None = None) -> str:
    """What ``python -m ivedit.sweep --help`` prints, wrapped to the terminal or to ``width`` columns."""
    width = width or min(110, shutil.get_terminal_size((100, 24)).columns)
    lines = [
        "Run many trainings and compare them: grids (arms x seeds) and Optuna searches. Any number of workers on any",
        "number of machines share one sweep; it can be stopped and killed at any time, and the same command goes on.",
        "",
        "usage: python -m ivedit.sweep sweep=NAME [key=value ...] [option]",
        "",
        "examples",
    ]
    for arguments, meaning in EXAMPLES:
        lines += [f"  python -m ivedit.sweep {arguments}".rstrip(), f"      {meaning}"]
    lines += ["", "options", *columns(OPTIONS, width), "", "sweeps (sweep=NAME)"]
    lines += columns(tuple((name, f"{kind}. {text}") for name, (kind, text) in sweep_summaries().items()), width)
    lines += ["", "keys of a sweep (key=value; as YAML in the file)"]
    for key, kind, default, meaning in key_rows():
        facts = f"{kind}; default {default}" if default else kind
        lines.append(f"    {key}  ({facts})")
        lines += textwrap.wrap(
            meaning, width, initial_indent=" " * 8, subsequent_indent=" " * 8, break_on_hyphens=False
        )
    lines += ["", "Any other key=value is a setting of every child: python -m ivedit.run --help lists them."]
    return "\n".join(lines) + "\n"


def dry_run(sweep: Sweep) -> str:
    """What would run: every cell of a grid, or the space of a search, and the number of children."""
    parts = [undecided_stage(sweep, name) for name in stages(sweep)]
    count = sum(stage.n_trials for stage in parts)
    lines = [f"{sweep.name}: {sweep.summary}".rstrip(": "), f"folder {sweep.folder}, {count} children in all"]
    for stage in parts:
        lines += ["", f"{_title(sweep, stage)}: {stage.n_trials} children, study {stage.study}"]
        lines += list(_cells(stage) if stage.cells is not None else _search(sweep, stage))
    return "\n".join(lines) + "\n"


def _title(sweep: Sweep, stage: Stage) -> str:
    if stage.name == TUNE and sweep.tune:
        goal = sweep.tune.objective
        return f"stage {TUNE}, each arm's {', '.join(sweep.tune.space)} by {goal.metric} ({goal.direction})"
    return f"stage {stage.name}" if stage.name == FINAL else "search"


def _cells(stage: Stage) -> Iterator[str]:
    for slot, cell in enumerate(stage.cells or ()):
        yield f"  {slot:4d}  {cell.label}"
        yield f"        {shlex.join(cell.settings)}"


def _search(sweep: Sweep, stage: Stage) -> Iterator[str]:
    yield f"  every trial  {shlex.join(stage.base)}"
    for key, space in stage.space.items():
        yield f"  varied       {key}: {show(space.as_dict())}"
    for objective in stage.objectives:
        yield f"  objective    {objective.direction} {objective.metric}"
    yield f"  sampler      {sweep.sampler.name}{_options(sweep.sampler.options)}"
    if stage.pruner is not None:
        pruner = stage.pruner
        yield f"  pruner       {pruner.name} by {pruner.metric} ({pruner.direction}){_options(pruner.options)}"
    for trial in stage.prior:
        yield f"  first        {show(dict(trial)) if isinstance(trial, Mapping) else trial}"


def _options(options: Mapping[str, Any]) -> str:
    return f" {show(dict(options))}" if options else ""
