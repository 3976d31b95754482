"""Write the pages that repeat the schema and the experiment files: ``python -m ivedit.config.docs``.

``experiments/README.md`` and ``docs/cli.md`` are generated, so that nothing is written twice; a test fails when they
are stale.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from ivedit import experiments
from ivedit.config.compose import RESUME_MAY_CHANGE, compose
from ivedit.config.fields import fields, groups, show
from ivedit.config.help import EXAMPLES, OPTIONS, ORDER, experiment_summaries

__all__ = ["REFERENCE", "cell", "changes", "cli_page", "experiments_page", "main", "pages", "write"]

REFERENCE = "imvideoedit"
_MADE = "<!-- Written by `python -m ivedit.config.docs`; edit ivedit/config or the YAML files instead. -->"


def changes(name: str) -> dict[str, str]:
    """What an experiment sets differently from `REFERENCE` when it inherits from it, else from the schema.

    The name and the summary always differ and are left out.
    """
    composed = compose([f"experiment={name}"], for_reading=True)
    mine = {key: past[-1].value for key, past in composed.history.items()}
    others = {key: item.default for key, item in fields().items()}
    if f"experiments/{REFERENCE}.yaml" in composed.layers and name != REFERENCE:
        parent = compose([f"experiment={REFERENCE}"])
        others = {key: past[-1].value for key, past in parent.history.items()}
    return {
        key: show(value) for key, value in mine.items() if key not in ("name", "summary") and value != others[key]
    }


def experiments_page() -> str:
    """``experiments/README.md``: a table of the shipped experiments with what each changes."""
    lines = [
        _MADE,
        "",
        "# Experiments",
        "",
        f"`python -m ivedit.run experiment=NAME` runs one. What each changes is against `{REFERENCE}` for those that",
        "inherit from it, else against the defaults (see [docs/cli.md](../docs/cli.md)). A file of your own works the",
        "same way: `experiment=./mine.yaml`, with `defaults: [imvideoedit]` to inherit.",
        "",
        "| experiment | what it is for | what it changes |",
        "|---|---|---|",
    ]
    for name, summary in experiment_summaries().items():
        what = ", ".join(f"`{key}={value}`" for key, value in changes(name).items()) or "the defaults as they are"
        lines.append(f"| [`{name}`]({name}.yaml) | {cell(summary)} | {cell(what)} |")
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    """``docs/cli.md``: how to call ``python -m ivedit.run``, and every setting."""
    lines = [_MADE, "", "# The command line of `ivedit.run`", "", "```"]
    for arguments, meaning in EXAMPLES:
        lines += [f"# {meaning}", f"python -m ivedit.run {arguments}".rstrip(), ""]
    lines[-1] = "```"
    lines += ["", "| option | what it does |", "|---|---|"]
    lines += [f"| `{option}` | {cell(meaning)} |" for option, meaning in OPTIONS]
    lines += [
        "",
        "Exit codes: 0 done, or stopped at `train.max_minutes`; 1 the run failed (its folder and the reason are",
        "printed); 2 it could not start as configured; 130 interrupted, `resume=FOLDER` continues it.",
        "",
        "## Composing",
        "",
        ORDER,
        "",
        "`resume=FOLDER` takes the configuration of that run folder; only these can change then: "
        + ", ".join(f"`{key}*`" if key.endswith(".") else f"`{key}`" for key in RESUME_MAY_CHANGE)
        + ". With a checkpoint, `train.devices` times `train.nodes` stays what it was.",
        "",
        "The experiments are listed in [experiments/README.md](../experiments/README.md).",
        "",
        "## Settings",
    ]
    group = None
    for key, item in fields().items():
        name = key.rpartition(".")[0]
        if name != group:
            group = name
            title = f"`{name}`: {groups()[name]}" if name else "The run"
            lines += ["", f"### {title.rstrip('.')}", "", "| setting | type | default | meaning |", "|---|---|---|---|"]
        kind = "; ".join(text for text in (item.type_text, item.range_text) if text)
        lines.append(f"| `{key}` | {cell(kind)} | `{show(item.default)}` | {cell(item.help)} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|")


def pages() -> dict[Path, str]:
    """Every generated page of a checkout and the text it should hold."""
    root = experiments.folder().parent
    return {root / "experiments" / "README.md": experiments_page(), root / "docs" / "cli.md": cli_page()}


def main() -> int:
    """Write the pages of the checkout that this package is imported from."""
    return write(pages())


def write(texts: Mapping[Path, str]) -> int:
    """Write pages and say so."""
    for path, text in texts.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
