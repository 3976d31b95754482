"""``python -m ivedit.report``: compare runs in one table, keep their records, import run folders into MLflow.

A run's record is a small copy of its results.json with what the table says about its training. The records of
published runs live in docs/results/, so that the README's table can be made, and checked, from the repository alone.
Tables never mix what cannot be compared: runs on other clips, lengths or thresholds get a table of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import logging
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ivedit.errors import ConfigError, IveditError
from ivedit.recording import config_hash, read_record
from ivedit.runfolder import RunFolder, list_gpus, write_json_atomic, write_text_atomic

START, END = "<!-- results:start -->", "<!-- results:end -->"
RECORD = 1
"""Version of a record."""

HEADLINE = ("edited_psnr", "kept_psnr", "success")

EXAMPLES = """\
examples:
  python -m ivedit.report runs/*
      a table of these runs, one row each, controls below; what is no run, or has no results yet, is skipped by name
  python -m ivedit.report runs/imvideoedit-* runs/ablation_* --record docs/results
      keep their records (docs/results/<experiment>.json)
  python -m ivedit.report docs/results --update README.md
      make the README's table anew, between its <!-- results:start --> and <!-- results:end -->
  python -m ivedit.report docs/results --check README.md
      exit code 1 when that table is not what the records say
  python -m ivedit.report --import runs/*
      show runs made with tracking.kind=none (on a machine without MLflow) in MLflow; again changes nothing. The folder
      of a sweep is shown whole, its runs below one of its own"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks and return the exit code."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    try:
        return _import(given.source, given.uri) if given.imported else _report(given)
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except IveditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ivedit.report",
        description="Compare runs in one table, keep their records, import them into MLflow.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("source", nargs="+", type=Path, help="run folders, records (.json), or a folder of records")
    add("--out", type=Path, metavar="FILE", help="write the table here instead of printing it")
    add("--update", type=Path, metavar="FILE", help="put the table between the markers of this Markdown file")
    add("--check", type=Path, metavar="FILE", help="compare the table with the one between the markers")
    add("--record", type=Path, metavar="FOLDER", help="write the runs' records into this folder")
    add("--import", dest="imported", action="store_true", help="replay folders of runs or sweeps into an MLflow store")
    add("--uri", help="MLflow store for --import (default: MLFLOW_TRACKING_URI, else mlflow.db beside the run folder)")
    return parser


class NothingToReport(IveditError):
    """A path that a pattern like ``runs/*`` names beside the runs to report, which is no mistake."""


def _report(given: argparse.Namespace) -> int:
    records = []
    for path in given.source:
        try:
            records += load_records(path)
        except NothingToReport as other:
            _say_skipped(other)
    if not records:
        raise IveditError("nothing to report: none of these is an evaluated run, a record or a folder of records")
    if given.record:
        given.record.mkdir(parents=True, exist_ok=True)
        for record in records:
            write_json_atomic(given.record / f"{record['experiment']}{_seed_suffix(record)}.json", record)
        print(f"{len(records)} records in {given.record}")
    table = format_records(records)
    if given.check:
        if _between(given.check)[1] != table:
            raise IveditError(f"the results table of {given.check} is stale: run again with --update {given.check}")
        print(f"{given.check} says what the records say")
    if given.update:
        before, _, after = _between(given.update)
        write_text_atomic(given.update, f"{before}{START}\n{table}\n{END}{after}")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(given.out, table + "\n")
    if not (given.check or given.update or given.out or given.record):
        print(table)
    return 0


def _import(folders: Iterable[Path], uri: str | None) -> int:
    from ivedit.sweeping.folders import is_sweep_folder
    from ivedit.sweeping.records import import_sweep
    from ivedit.tracking import import_run

    found, failed = 0, 0
    for folder in folders:
        try:
            if is_sweep_folder(folder):
                found += 1
                print(f"{folder}: MLflow run {import_sweep(folder, uri)} and its slots' runs below it")
                continue
            run = _open(folder)
            found += 1
            print(f"{folder}: MLflow run {import_run(run, uri)} ({run.status()['state']})")
        except NothingToReport as other:
            _say_skipped(other)
        except IveditError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
    if not found and not failed:
        raise IveditError("nothing to import: none of these is a folder of a run or of a sweep")
    return 1 if failed else 0


def _open(path: Path) -> RunFolder:
    """The run in a folder; NothingToReport for anything else that exists."""
    if not path.exists():
        raise IveditError(f"{path} does not exist")
    try:
        return RunFolder.open(path)
    except IveditError as error:
        raise NothingToReport(str(error)) from error


def _say_skipped(other: NothingToReport) -> None:
    print(f"skipped: {other}", file=sys.stderr)


# -- records -----------------------------------------------------------------------------------------------------


def load_records(path: Path) -> list[dict[str, Any]]:
    """The records meant by a run folder, a record file, or a folder of record files.

    Raises:
        NothingToReport: the path is none of these, or a run without results yet.
        IveditError: it does not exist, or a record is damaged or of another version.
    """
    if path.is_file() and path.suffix == ".json":
        return [_read_record(path)]
    if (path / "status.json").is_file():
        return [record_of(_open(path))]
    if not path.exists():
        raise IveditError(f"{path} does not exist")
    files = sorted(path.glob("*.json")) if path.is_dir() else []
    if not files:
        raise NothingToReport(f"{path} is no run folder, no record and no folder of records")
    from ivedit.experiments import names

    known = names()
    found = [_read_record(file) for file in files]
    return sorted(found, key=lambda r: known.index(r["experiment"]) if r["experiment"] in known else len(known))


def record_of(run: RunFolder) -> dict[str, Any]:
    """The record of an evaluated run: its results without the values of every clip but the headline's.

    Raises NothingToReport when it has none yet.
    """
    results = run.results()
    if results is None:
        raise NothingToReport(f"{run.path} has no results.json: it has not been evaluated")
    config, status, params = run.config(), run.status(), read_record(run)["params"]
    steps, step_seconds = _training(run)
    own = results["name"]
    environment = results["environment"]
    trained = environment["editors"].get(own, {}).get("trained_weights") or params.get("trained_parameters")
    clips = results["clips"]
    return {
        "record": RECORD,
        "experiment": own,
        "summary": config.get("summary", ""),
        "state": status["state"],
        "seed": config.get("seed", 0),
        "run": run.name,
        "config_hash": config_hash(config),
        "trained_weights": int(trained) if trained else None,
        "steps": steps,
        "step_seconds": step_seconds,
        **{key: results[key] for key in ("split", "frames", "thresholds", "sampling")},
        "clips": len(clips),
        "operations": list(dict.fromkeys(clip["operation"] for clip in clips)),
        "clips_hash": hashlib.sha256("\n".join(str(clip["id"]) for clip in clips).encode()).hexdigest()[:12],
        "rows": {name: _compact_row(row) for name, row in results["rows"].items()},
        "paired": results.get("paired", {}),
        **{key: _without_clips(results[key]) for key in ("triage", "gate") if key in results},
        "environment": {**environment, "gpus": list_gpus(environment["gpus"])},
    }


def _compact_row(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in row.items() if key != "per_clip"}
    if row["kind"] == "editor" and "per_clip" in row:
        values = {name: row["per_clip"][name] for name in HEADLINE if name in row["per_clip"]}
        kept["per_clip"] = {k: [None if x is None else round(x, 3) for x in v] for k, v in values.items()}
    return kept


def _without_clips(value: Any) -> Any:
    """Nested results without their lists of one value per clip."""
    if isinstance(value, Mapping):
        return {key: _without_clips(item) for key, item in value.items() if key != "per_clip"}
    return value


def _training(run: RunFolder) -> tuple[int | None, float | None]:
    """Steps done, and the median time of one: pauses between pieces of a run, and validations, do not count."""
    rows = [row for row in run.read_metrics() if any(key.startswith("train/") for key in row)]
    pace = [
        (b["time"] - a["time"]) / (b["step"] - a["step"])
        for a, b in itertools.pairwise(rows)
        if b["step"] > a["step"]
    ]
    return (max(row["step"] for row in rows) if rows else None), (round(statistics.median(pace), 5) if pace else None)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise IveditError(f"cannot read the record {path}: {error}") from error
    if not isinstance(record, dict) or "record" not in record:
        raise NothingToReport(f"{path} is no record")
    if record["record"] != RECORD:
        raise IveditError(f"{path} is no record of this version: make it with `python -m ivedit.report RUN --record`")
    return record


def _seed_suffix(record: Mapping[str, Any]) -> str:
    return f"-seed{record['seed']}" if record["seed"] else ""


# -- tables ------------------------------------------------------------------------------------------------------


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
            "-" if not steps or not pace else _duration(steps * pace),
        ])  # fmt: skip
    shown = {record["experiment"] for record in records}
    for record, label in zip(records, labels, strict=True):
        for name, row in record["rows"].items():
            if name not in shown:  # controls are the same in every run of the group: the first tells them
                shown.add(name)
                other = f"{name} (measured with {label})" if row["kind"] == "editor" else name
                weights = record["environment"]["editors"].get(name, {}).get("trained_weights")
                lines.append([other, *_numbers(row), f"{weights / 1e6:.2f}M" if weights else "-", "-", "-"])
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    table = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in (head, *lines)]
    body = [f"| {' | '.join(line)} |" for line in table]
    body.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return f"{_about(records)}\n\n" + "\n".join(body)


def _about(records: list[Mapping[str, Any]]) -> str:
    """What the table's numbers are, from the records alone."""
    first = records[0]
    limits, environment = first["thresholds"], first["environment"]
    sampling = sorted({_sampling(record) for record in records})
    seeds = sorted({record["seed"] for record in records})
    machines = sorted({_machine(record["environment"]) for record in records})
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


def _machine(environment: Mapping[str, Any]) -> str:
    """All its GPUs, of which a run may have used one."""
    gpus = ", ".join(list_gpus(environment["gpus"]))
    return f"a machine with {gpus}" if gpus else str(environment["device"])


def _sampling(record: Mapping[str, Any]) -> str:
    sampling = record["sampling"]
    return f"{sampling['steps']} {sampling['scheduler']} steps, guidance {sampling['guidance']:g}"


def _labels(records: list[Mapping[str, Any]]) -> list[str]:
    """Experiment names, with whatever else it takes to tell the runs apart, and states other than FINISHED."""
    for label in ("{experiment}", "{experiment}, seed {seed}", "{run}"):
        labels = [label.format(**record) for record in records]
        if len(set(labels)) == len(labels):
            break
    notes = [[] if record["state"] == "FINISHED" else [record["state"].lower()] for record in records]
    if len({_sampling(record) for record in records}) > 1:
        notes = [[_sampling(record), *note] for record, note in zip(records, notes, strict=True)]
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


def _duration(seconds: float) -> str:
    for limit, unit, digits, name in ((120, 1, 0, "s"), (7200, 60, 1, "min")):
        if seconds < limit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds / 3600:.1f} h"


def _between(path: Path) -> tuple[str, str, str]:
    """What stands before, between and after the markers of a Markdown file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise IveditError(f"cannot read {path}: {error.strerror}") from error
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise IveditError(f"{path} needs one line {START} and, below it, one line {END}")
    before, rest = text.split(START)
    inside, after = rest.split(END)
    return before, inside.strip("\n"), after


if __name__ == "__main__":
    sys.exit(main())
