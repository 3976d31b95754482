"""One table of runs, a row each, from their records; runs that cannot be compared get a table of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ivedit.reporting.records import HEADLINE
from ivedit.runfolder import list_gpus

__all__ = ["aligned", "duration", "format_records", "machine_of", "sampling_of"]


def format_records(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: one table for each set of runs that can be compared, with what was measured in words above it."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        same = [record[key] for key in ("split", "frames", "thresholds", "clips_hash", "clips")]
        same.append(record["environment"]["backbone_fingerprint"])
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(record)
    return "\n\n".join(_group(group) for group in groups.values())


def _group(records: list[Mapping[str, Any]]) -> str:
    labels = _labels(records)
    head = [
        "run", "edited region, dB ↑", "kept region, dB ↑", "success ↑", "n/N", "trained weights", "steps", "training",
    ]  # fmt: skip
    lines = []
    for record, label in zip(records, labels, strict=True):
        weights = record["trained_weights"]
        steps, pace = record["steps"], record["step_seconds"]
        lines.append([
            label, *_numbers(record["rows"][record["experiment"]]),
            "-" if weights is None else f"{weights / 1e6:.2f}M", "-" if steps is None else f"{steps:,}",
            "-" if not steps or not pace else duration(steps * pace),
        ])  # fmt: skip
    shown = {record["experiment"] for record in records}
    for record, label in zip(records, labels, strict=True):
        for name, row in record["rows"].items():
            if name not in shown:  # controls are the same in every run of the group: the first tells them
                shown.add(name)
                other = f"{name} (measured with {label})" if row["kind"] == "editor" else name
                weights = record["environment"]["editors"].get(name, {}).get("trained_weights")
                lines.append([other, *_numbers(row), f"{weights / 1e6:.2f}M" if weights else "-", "-", "-"])
    return f"{_about(records)}\n\n{aligned(head, lines)}"


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, which reads well in a terminal too."""
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    table = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in (head, *lines)]
    body = [f"| {' | '.join(line)} |" for line in table]
    body.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(body)


def _about(records: list[Mapping[str, Any]]) -> str:
    """What the table's numbers are, from the records alone."""
    first = records[0]
    limits, environment = first["thresholds"], first["environment"]
    sampling = sorted({sampling_of(record) for record in records})
    seeds = sorted({record["seed"] for record in records})
    machines = sorted({machine_of(record["environment"]) for record in records})
    dates = sorted({record["environment"]["date"][:10] for record in records})
    operations = len(first["operations"])
    return (
        f"{first['clips']} held-out videos (split `{first['split']}`, {operations} operations, {first['frames']} "
        f"frames each), {sampling[0] if len(sampling) == 1 else 'sampled as named'}. Success: edited region above "
        f"{limits['edited_db']:g} dB and kept region above {limits['kept_db']:g} dB over all frames. Brackets: 95% "
        f"interval over clips; {'training seeds' if len(seeds) > 1 else 'one training seed,'} "
        f"{', '.join(map(str, seeds))}. "
        f"n/N: clips with a value, where not all have one. Training: median step time x steps, on "
        f"{' and '.join(machines)}. "
        f"Backbone {environment['backbone']} ({environment['backbone_fingerprint'][:12]}). {' to '.join(dates)}."
    )


def machine_of(environment: Mapping[str, Any]) -> str:
    """All its GPUs, of which a run may have used one."""
    gpus = ", ".join(list_gpus(environment["gpus"]))
    return f"a machine with {gpus}" if gpus else str(environment["device"])


def sampling_of(record: Mapping[str, Any]) -> str:
    """How its clips were sampled, in words."""
    sampling = record["sampling"]
    return f"{sampling['steps']} {sampling['scheduler']} steps, guidance {sampling['guidance']:g}"


def _labels(records: list[Mapping[str, Any]]) -> list[str]:
    """Experiment names, with whatever else it takes to tell the runs apart, and states other than FINISHED."""
    for label in ("{experiment}", "{experiment}, seed {seed}", "{run}"):
        labels = [label.format(**record) for record in records]
        if len(set(labels)) == len(labels):
            break
    notes = [[] if record["state"] == "FINISHED" else [record["state"].lower()] for record in records]
    if len({sampling_of(record) for record in records}) > 1:
        notes = [[sampling_of(record), *note] for record, note in zip(records, notes, strict=True)]
    return [f"{label} ({'; '.join(note)})" if note else label for label, note in zip(labels, notes, strict=True)]


def _numbers(row: Mapping[str, Any]) -> list[str]:
    from ivedit.evaluation.statistics import Estimate

    cells = []
    for name in HEADLINE:
        found = {**row["metrics"][name]}
        if name == "success":
            found |= {key: None if found[key] is None else 100 * found[key] for key in ("mean", "low", "high")}
        cells.append(Estimate(**found).text(0, "%") if name == "success" else Estimate(**found).text(1))
    counted = row["metrics"]["success"]
    return [*cells, f"{counted['n']}/{counted['total']}"]


def duration(seconds: float) -> str:
    """``95 s``, ``12.5 min``, ``3.1 h``."""
    for limit, unit, digits, name in ((120, 1, 0, "s"), (7200, 60, 1, "min")):
        if seconds < limit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds / 3600:.1f} h"
