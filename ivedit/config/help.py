"""The text of ``--help`` and ``--explain KEY``, written from the schema and the shipped experiments."""

from __future__ import annotations

import shutil
import textwrap

from ivedit import experiments
from ivedit.config.compose import RESUME_MAY_CHANGE, Composed
from ivedit.config.fields import Field, fields, groups, show
from ivedit.config.layers import file_layers, or_nearest_key
from ivedit.errors import ConfigError

__all__ = ["EXAMPLES", "OPTIONS", "ORDER", "columns", "experiment_summaries", "explain", "help_text"]

EXAMPLES = (
    ("", "the quickstart: trains a small editor on sprites and evaluates it on held-out videos"),
    ("experiment=imvideoedit", "the whole method"),
    ("experiment=imvideoedit train.lr=5e-4 editor.width=128", "the same with other settings"),
    ("experiment=ablation_no_gate --print-config", "what would run, as YAML; nothing is started"),
    ("experiment=control_every_2 --explain editor.every", "who set this value, and what it replaced"),
    ("experiment=paper_14b --plan h100", "whether it fits, how long it takes, what saves memory; nothing is started"),
    ("train.max_steps=20 evaluation.clips=3 tracking.kind=none", "a quick trial without MLflow"),
    ("'data.operations=[recolour,remove]' train.max_minutes=null", "lists and null are written as in YAML"),
    ("'evaluation.editors={mine: runs/MY_RUN}'", "one more row in the table; evaluation.editors.mine=... adds to it"),
    ("experiment=paper_1.3b data.path=my_pairs", "the paper's schedule on Wan 2.1 1.3B with your own pairs"),
    ("experiment=imvideoedit backbone=./Wan2.1-T2V-1.3B-Diffusers", "another backbone: a known name or a folder"),
    ("experiment=imvideoedit data.reader=folder data.path=my_pairs", "your own pairs (a CSV or JSONL table, images)"),
    ("experiment=imvideoedit data.reader=set data.preset=magicbrush", "a published set, from the hub (docs/data.md)"),
    ("experiment=./mine.yaml", "your own experiment file; `defaults: [imvideoedit]` inherits from a shipped one"),
    ("resume=runs/quickstart-20261122-101500-1a2b", "continue a stopped run, with that run's own configuration"),
    ("init_from=shipped train.lr=3e-4", "start from trained modules, with a new optimiser"),
)

OPTIONS = (
    ("--help", "this text"),
    ("--print-config", "print the composed and checked configuration as YAML, and stop"),
    (
        "--plan [GPU]",
        "estimate memory, operations, pairs/s and time on a GPU, without touching one, and stop; GPU: h200, h100, "
        "a100, 4090, l40s, or the one in this machine",
    ),
    ("--plan-json FILE", "write that estimate as JSON too"),
    ("--explain KEY", "print a setting's value and meaning, which file or argument set it, what it replaced, and stop"),
)

ORDER = (
    "Order: schema defaults < experiments/base.yaml < the experiment's `defaults:` parents < the experiment < "
    "command line. A list or mapping is replaced whole by a later one."
)


def experiment_summaries() -> dict[str, str]:
    """Each shipped experiment's ``summary:`` line, by name."""
    found = {}
    for name in experiments.names():
        settings = file_layers(experiments.find(name))[-1].settings
        found[name] = str([setting.value for setting in settings if setting.key == "summary"][-1])
    return found


def help_text(width: int | None = None) -> str:
    """What ``python -m ivedit.run --help`` prints, wrapped to the terminal or to ``width`` columns."""
    width = width or min(110, shutil.get_terminal_size((100, 24)).columns)
    lines = [
        "Learn video editing from image pairs: train edit modules on a frozen text-to-video transformer, evaluate",
        "them on held-out videos, and record the run in a folder and in MLflow.",
        "",
        "usage: python -m ivedit.run [experiment=NAME] [key=value ...] [option]",
        "",
        "examples",
    ]
    for arguments, meaning in EXAMPLES:
        lines += [f"  python -m ivedit.run {arguments}".rstrip(), f"      {meaning}"]
    lines += ["", "options"]
    lines += columns(OPTIONS, width)
    lines += ["", "experiments (experiment=NAME; without it: quickstart)"]
    lines += columns(tuple(experiment_summaries().items()), width)
    lines += ["", "settings (key=value)", *textwrap.wrap(ORDER, width, initial_indent="  ", subsequent_indent="  ")]
    may = "With resume=FOLDER only these can change: " + ", ".join(
        key + "*" if key.endswith(".") else key for key in RESUME_MAY_CHANGE
    )
    lines += textwrap.wrap(may, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    group = None
    for key, item in fields().items():
        name = key.rpartition(".")[0]
        if name != group:
            group = name
            lines += ["", f"  {name or 'the run'}: {groups().get(name) or 'What to run.'}"]
        lines += _setting_lines(item, width)
    return "\n".join(lines) + "\n"


def _setting_lines(item: Field, width: int) -> list[str]:
    facts = "; ".join(text for text in (item.type_text, item.range_text, f"default {show(item.default)}") if text)
    body = textwrap.wrap(item.help, width, initial_indent=" " * 8, subsequent_indent=" " * 8, break_on_hyphens=False)
    return [f"    {item.key}  ({facts})", *body]


def columns(rows: tuple[tuple[str, str], ...], width: int) -> list[str]:
    """Names and texts side by side, indented, the texts wrapped."""
    left = max(len(name) for name, _ in rows) + 4
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, max(30, width - left)) or [""]
        lines.append(f"  {name}".ljust(left) + wrapped[0])
        lines += [" " * left + more for more in wrapped[1:]]
    return lines


def explain(composed: Composed, key: str) -> str:
    """A setting's value, meaning and history; for a group, of each of its settings. ConfigError for an unknown key."""
    keys = [name for name in fields() if name == key or name.startswith(key + ".")]
    if not keys:
        raise ConfigError(f"--explain {key}: there is no such setting; {or_nearest_key(key)}")
    return "\n\n".join(_explain_one(composed, name) for name in keys) + "\n"


def _explain_one(composed: Composed, key: str) -> str:
    item, past = fields()[key], composed.history[key]
    facts = "; ".join(text for text in (item.type_text, item.range_text, f"default {show(item.default)}") if text)
    lines = [f"{key} = {show(past[-1].value)}", f"  {item.help}", f"  {facts}", f"  set by    {past[-1].source}"]
    lines += [f"  replaced  {show(old.value)}  ({old.source})" for old in reversed(past[:-1])]
    return "\n".join(lines)
