"""Write ``sweeps/README.md``, which repeats the sweep files and their keys: ``python -m ivedit.sweeping.docs``.

A test fails when the page is stale, as for the pages of `ivedit.config.docs`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ivedit import experiments
from ivedit.config.docs import cell, write
from ivedit.config.fields import show
from ivedit.sweeping.describe import EXAMPLES, OPTIONS, key_rows
from ivedit.sweeping.plan import stages, undecided_stage
from ivedit.sweeping.resolve import resolve
from ivedit.sweeping.spec import Stage, Sweep

__all__ = ["main", "pages", "sweeps_page"]

_MADE = "<!-- Written by `python -m ivedit.sweeping.docs`; edit ivedit/sweeping or the YAML files instead. -->"


def sweeps_page() -> str:
    """``sweeps/README.md``: the shipped sweeps, the command line, every key of a sweep file."""
    lines = [
        _MADE,
        "",
        "# Sweeps",
        "",
        "`python -m ivedit.sweep sweep=NAME` runs one; `--dry-run` shows its children first. How sweeps work, on one",
        "machine and on many, stands in [docs/sweeps.md](../docs/sweeps.md). A file of your own works the same way:",
        "`sweep=./mine.yaml`.",
        "",
        "| sweep | what it is for | what it runs | children |",
        "|---|---|---|---|",
    ]
    for name in experiments.SWEEPS.names():
        sweep = resolve([f"sweep={name}"])
        parts = [undecided_stage(sweep, stage) for stage in stages(sweep)]
        count = " + ".join(str(part.n_trials) for part in parts)
        lines.append(f"| [`{name}`]({name}.yaml) | {cell(sweep.summary)} | {cell(_what(sweep, parts))} | {count} |")
    lines += ["", "## Command line", "", "```"]
    for arguments, meaning in EXAMPLES:
        lines += [f"# {meaning}", f"python -m ivedit.sweep {arguments}", ""]
    lines[-1] = "```"
    lines += ["", "| option | what it does |", "|---|---|"]
    lines += [f"| `{option}` | {cell(meaning)} |" for option, meaning in OPTIONS]
    lines += [
        "",
        "Exit codes: 0 all slots have ended well or were pruned; 1 a slot failed for good, or the sweep could not go",
        "on; 2 it could not start as asked for; 130 interrupted, the same command goes on.",
        "",
        "## Keys of a sweep file",
        "",
        "On the command line as `key=value`; `space.train.lr=...` and the like add one entry to a table, null takes it",
        "out. Any other `key=value` there is a setting of every child, as under `settings:` in the file, and those are",
        "listed in [docs/cli.md](../docs/cli.md).",
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for key, kind, default, meaning in key_rows():
        lines.append(f"| `{key}` | {cell(kind)} | {f'`{default}`' if default else ''} | {cell(meaning)} |")
    return "\n".join(lines) + "\n"


def _what(sweep: Sweep, parts: list[Stage]) -> str:
    """Arms and seeds, or the space, in a line."""
    if sweep.kind == "search":
        space = ", ".join(f"`{key}` {show(item.as_dict())}" for key, item in sweep.space.items())
        goals = ", ".join(f"{goal.direction} {goal.metric}" for goal in sweep.objectives)
        pruner = f"; pruner {sweep.pruner.name}" if sweep.pruner else ""
        return f"{space}; {goals}; sampler {sweep.sampler.name}{pruner}"
    arms = ", ".join(f"`{arm.name}`" for arm in sweep.arms)
    tuned = ""
    if sweep.tune:
        values = "; ".join(f"`{key}` of {show(list(item.choices))}" for key, item in sweep.tune.space.items())
        tuned = f"first each arm's {values} on validation clips; "
    return f"{tuned}{arms}; seeds {show(list(sweep.seeds))}"


def pages() -> dict[Path, str]:
    """Every page that this module writes and the text it should hold."""
    return {experiments.SWEEPS.folder() / "README.md": sweeps_page()}


def main() -> int:
    """Write the page of the checkout that this package is imported from."""
    return write(pages())


if __name__ == "__main__":
    sys.exit(main())
