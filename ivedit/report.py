"""``python -m ivedit.report``: compare runs in one table, keep their records, import run folders into MLflow.

A run's record is a small copy of its results.json with what the table says about its training. The records of
published runs live in docs/results/, so that the README's table can be made, and checked, from the repository alone.
Tables never mix what cannot be compared: runs on other clips, lengths or thresholds get a table of their own.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ivedit.errors import ConfigError, IveditError
from ivedit.reporting.records import NothingToReport, load_records, open_run, record_name
from ivedit.reporting.run_table import format_records
from ivedit.runfolder import write_json_atomic, write_text_atomic

START, END = "<!-- results:start -->", "<!-- results:end -->"

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
            write_json_atomic(given.record / record_name(record), record)
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
            run = open_run(folder)
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


def _say_skipped(other: NothingToReport) -> None:
    print(f"skipped: {other}", file=sys.stderr)


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
