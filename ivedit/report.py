"""``python -m ivedit.report``: compare runs, report sweeps, keep their records, import run folders into MLflow.

A sweep is reported over its seeds, with intervals, paired differences and its claims; runs stand in one table, a row
each. A run's record is a small copy of its results.json with what the table says about its training. The records of
published runs live in docs/results/, so that the README's table can be made, and checked, from the repository alone.
Tables never mix what cannot be compared: runs on other clips, lengths or thresholds get a table of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivedit.config.command_line import refuse
from ivedit.errors import ConfigError, IveditError
from ivedit.registry import import_plugins
from ivedit.reporting.records import SWEEP_PREFIX, NothingToReport, load_records, open_run, record_name
from ivedit.reporting.run_table import format_records
from ivedit.runfolder import write_json_atomic, write_text_atomic

if TYPE_CHECKING:
    from ivedit.reporting.layout import Report

START, END = "<!-- results:start -->", "<!-- results:end -->"
"""Where a page holds the table of runs; a sweep's stands between markers with its name."""

SHIPPED = "wan-sprites"

FORMATS = (".md", ".csv", ".tex", ".html")

EXAMPLES = """\
examples:
  python -m ivedit.report runs/ablations
      the report of a sweep, finished or still running: printed, and in its tables/ as report.md, .csv, .tex and .html
  python -m ivedit.report --uri http://server:5000 --sweep ablations --out report.html
      the same from MLflow, when the run folders are elsewhere
  python -m ivedit.report runs/ablations --record docs/results
      keep its record (docs/results/sweep-ablations.json), from which the report can be made again
  python -m ivedit.report docs/results/sweep-ablations.json --update README.md
      between the README's <!-- sweep ablations:start --> and <!-- sweep ablations:end -->; --check compares
  python -m ivedit.report runs/ablations --plots figures
      its plots for a paper: figures/ablations-arms.pdf (a dot per seed), -differences.pdf, -profile.pdf, and as .png
  python -m ivedit.report --arms runs/imvideoedit-* runs/ablation_*
      runs of several seeds that no sweep made, as arms
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
      of a sweep is shown whole, its runs below one of its own
  python -m ivedit.report --import docs/results --uri sqlite:///published.db
      the published records as runs in MLflow"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks and return the exit code."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    try:
        _check(given)
        return _import(given.source, given.uri) if given.imported else _report(given)
    except ConfigError as error:
        return refuse(error)
    except IveditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ivedit.report",
        description="Compare runs in one table, report sweeps, keep their records, import them into MLflow.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("source", nargs="*", type=Path, help="folders of sweeps or runs, records (.json), or a folder of records")
    add("--out", type=Path, metavar="PATH",
        help="write here instead of printing; a sweep: a file by its suffix (.md .csv .tex .html), or a folder for all")
    add("--plots", type=Path, metavar="FOLDER", help="write a sweep's plots into this folder, as PNG and PDF")
    add("--update", type=Path, metavar="FILE", help="put the table between the markers of this Markdown file")
    add("--check", type=Path, metavar="FILE", help="compare the table with the one between the markers")
    add("--record", type=Path, metavar="FOLDER", help="write the records into this folder")
    add("--arms", action="store_true", help="the run folders are one sweep: an arm for each experiment, over its seeds")
    add("--sweep", metavar="NAME", help="report this sweep from MLflow: its name, or its parent run's id")
    add("--import", dest="imported", action="store_true", help="replay the folders into an MLflow store")
    add("--uri", help="MLflow store for --sweep and --import (default: MLFLOW_TRACKING_URI; --import: else mlflow.db "
                      "beside the folder)")
    return parser  # fmt: skip


def _check(given: argparse.Namespace) -> None:
    """Refuse places that are not there and options that do not go together. Raises ConfigError with all of them."""
    problems = [f"{path} does not exist" for path in given.source if not path.exists()]
    if given.sweep and (given.source or given.imported or given.arms):
        problems.append("--sweep reads from MLflow: leave out folders, --import and --arms")
    if not given.sweep and not given.source:
        problems.append("name folders of runs or of a sweep, or records; or a sweep in MLflow with --uri and --sweep")
    if given.sweep and not (given.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        problems.append("--sweep needs the store: --uri sqlite:///runs/mlflow.db, a server's address, or "
                        "MLFLOW_TRACKING_URI")  # fmt: skip
    if given.out and given.out.suffix.lower() in (".pdf", ".png", ".svg"):
        problems.append(f"--out {given.out}: a report is .md, .csv, .tex or .html, or a folder for all; pictures come "
                        "with --plots FOLDER")  # fmt: skip
    if given.uri and not (given.sweep or given.imported):
        problems.append("--uri goes with --sweep or --import")
    if problems:
        raise ConfigError(problems)


def _report(given: argparse.Namespace) -> int:
    sweeps = list(_sweeps(given))
    for sweep in sweeps:
        _put_sweep(sweep, given)
    left = [] if given.sweep or given.arms else [p for p in given.source if not any(p == s.source for s in sweeps)]
    if left or not sweeps:
        _report_runs(left, given)
    return 0


def _report_runs(sources: Sequence[Path], given: argparse.Namespace) -> None:
    if given.plots:
        raise ConfigError(["--plots draws sweeps; make runs of several seeds one with --arms"])
    records = []
    for path in sources:
        try:
            records += load_records(path)
        except NothingToReport as other:
            _say_skipped(other)
    if not records:
        raise IveditError("nothing to report: none of these is an evaluated run, a sweep, a record or a folder of "
                          "records")  # fmt: skip
    if given.record:
        given.record.mkdir(parents=True, exist_ok=True)
        for record in records:
            write_json_atomic(given.record / record_name(record), record)
        print(f"{len(records)} records in {given.record}")
    table = format_records(records)
    _put_table(table, "results", given)
    if given.out:
        _write(given.out, table + "\n")
    if not (_elsewhere(given) or given.out):
        print(table)


# -- sweeps ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sweep:
    """A sweep to report: where it was named, its report, its record unless it is a search."""

    source: Path | None
    report: Report
    record: dict[str, Any] | None
    tables: Path | None = None


def _sweeps(given: argparse.Namespace) -> Iterator[_Sweep]:
    """The sweeps among what was named."""
    from ivedit.reporting.ablation import ablation_report
    from ivedit.reporting.sweep_record import read_sweep_record
    from ivedit.sweeping.folders import is_sweep_folder

    if given.sweep:
        from ivedit.tracking import fetch_sweep

        with tempfile.TemporaryDirectory(prefix="ivedit-report-") as place:
            uri = given.uri or os.environ["MLFLOW_TRACKING_URI"]
            yield dataclasses.replace(_of_folder(fetch_sweep(uri, given.sweep, Path(place))), source=None, tables=None)
    elif given.arms:
        yield _of_runs(given.source)
    else:
        for path in given.source:
            if is_sweep_folder(path):
                yield _of_folder(path)
            elif path.suffix == ".json" and path.is_file() and (found := read_sweep_record(path)):
                yield _Sweep(path, ablation_report(found), found)


def _of_runs(sources: Iterable[Path]) -> _Sweep:
    """Run folders and records of any origin as one sweep."""
    from ivedit.reporting.ablation import ablation_report
    from ivedit.reporting.sweep_record import record_of_runs

    records: list[dict[str, Any]] = []
    configs: dict[str, Mapping[str, Any]] = {}
    folders: dict[str, dict[int, Path]] = {}
    pending = 0
    for path in sources:
        try:
            found = load_records(path)
        except NothingToReport as other:
            pending += (path / "status.json").is_file()
            _say_skipped(other)
            continue
        records += found
        if (path / "status.json").is_file():
            (record,) = found
            configs.setdefault(record["experiment"], open_run(path).config())
            folders.setdefault(record["experiment"], {})[record["seed"]] = path
    record = record_of_runs(records, configs, count_arm, pending=pending)
    return _Sweep(None, ablation_report(record, folders), record)


def _of_folder(folder: Path) -> _Sweep:
    from ivedit.reporting.ablation import ablation_report
    from ivedit.reporting.search import search_report
    from ivedit.reporting.sweep_record import record_of_folder, run_folders
    from ivedit.sweeping.folders import read_sweep

    if read_sweep(folder)[0].kind == "search":
        return _Sweep(folder, search_report(folder), None, folder / "tables")
    record = record_of_folder(folder, count_arm)
    return _Sweep(folder, ablation_report(record, run_folders(folder)), record, folder / "tables")


def count_arm(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Counted FLOPs of a run's configuration (`ivedit.training.flops`), or ``{"skipped": why}``.

    Only on the shipped backbone: another one may be large, or on another machine.
    """
    from ivedit.config import from_dict
    from ivedit.training.flops import count_flops

    backbone = (config.get("backbone") or {}).get("path")
    if backbone != SHIPPED:
        return {"skipped": f"not counted (only {SHIPPED} is at hand everywhere, not {backbone})"}
    if config.get("init_from"):
        return {"skipped": "not counted (the editor is that of init_from, not of the configuration)"}
    try:
        import_plugins(config.get("plugins") or ())
        return count_flops(from_dict({**config, "resume": None}))
    except IveditError as error:
        return {"skipped": f"not counted ({str(error).splitlines()[0]})"}


def _put_sweep(sweep: _Sweep, given: argparse.Namespace) -> None:
    """Print or write a sweep's report as the options say."""
    from ivedit.reporting.layout import to_html, to_latex, to_markdown

    report, table = sweep.report, to_markdown(sweep.report)
    texts = {".md": lambda: f"# {report.name}\n\n{table}\n", ".csv": lambda: report.csv,
             ".tex": lambda: to_latex(report), ".html": lambda: to_html(report)}  # fmt: skip
    if given.record:
        if sweep.record is None:
            raise IveditError(f"{report.name} is a search: its study is its record, so --record keeps nothing")
        given.record.mkdir(parents=True, exist_ok=True)
        file = given.record / f"{SWEEP_PREFIX}{report.name}.json"
        write_json_atomic(file, sweep.record)
        print(f"record of {report.name}: {file}")
    _put_table(table, f"sweep {report.name}", given)
    if given.plots:
        if not report.plots:
            raise IveditError(f"{report.name} is a search: its plots lie in plots/ of the sweep's folder already")
        _save_plots(report, given.plots)
    if given.out and given.out.suffix in texts:
        _write(given.out, texts[given.out.suffix]())
    else:
        folder = given.out or (None if _elsewhere(given) else sweep.tables)
        if folder:
            for suffix, text in texts.items():
                _write(folder / f"report{suffix}", text())
            print(f"{report.name}: {folder / 'report.html'}, and .md, .csv, .tex beside it", file=sys.stderr)
    if not (_elsewhere(given) or given.out):
        print(table)


def _elsewhere(given: argparse.Namespace) -> bool:
    """Whether something else than the tables themselves was asked for."""
    return bool(given.check or given.update or given.record or given.plots)


def _put_table(table: str, name: str, given: argparse.Namespace) -> None:
    """``--check`` and ``--update``: compare or replace what stands between a page's markers."""
    if given.check:
        if _between(given.check, name)[1] != table:
            raise IveditError(f"the {name} table of {given.check} is stale: run again with --update {given.check}")
        print(f"{given.check} says what the records say")
    if given.update:
        before, _, after = _between(given.update, name)
        write_text_atomic(given.update, f"{before}{_start(name)}\n{table}\n{_end(name)}{after}")


def _save_plots(report: Report, folder: Path) -> None:
    from ivedit.reporting.layout import save_plots

    try:
        files = save_plots(report, folder)
    except OSError as error:
        raise IveditError(f"cannot write plots into {folder}: {error.strerror or error}; name another place") from error
    for file in files:
        print(file)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, text)
    except OSError as error:
        raise IveditError(f"cannot write {path}: {error.strerror or error}; name another place with --out") from error


# -- importing ---------------------------------------------------------------------------------------------------


def _import(folders: Iterable[Path], uri: str | None) -> int:
    from ivedit.reporting.published import import_record
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
            if not (folder / "status.json").is_file() and (records := _records_in(folder)):
                for record in records:
                    found += 1
                    print(f"{folder}: MLflow run {import_record(record, uri or _default_uri())} ({record['run']})")
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


def _records_in(path: Path) -> list[dict[str, Any]]:
    """Records of runs, where ``path`` is one or a folder of them; nothing for any other path that exists."""
    try:
        return load_records(path)
    except NothingToReport:
        return []


def _default_uri() -> str:
    from ivedit.tracking_uri import default_uri

    return os.environ.get("MLFLOW_TRACKING_URI") or default_uri("runs")


def _say_skipped(other: NothingToReport) -> None:
    print(f"skipped: {other}", file=sys.stderr)


def _start(name: str) -> str:
    return f"<!-- {name}:start -->"


def _end(name: str) -> str:
    return f"<!-- {name}:end -->"


def _between(path: Path, name: str) -> tuple[str, str, str]:
    """What stands before, between and after the markers of a Markdown file."""
    start, end = _start(name), _end(name)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise IveditError(f"cannot read {path}: {error.strerror}") from error
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise IveditError(f"{path} needs one line {start} and, below it, one line {end}")
    before, rest = text.split(start)
    inside, after = rest.split(end)
    return before, inside.strip("\n"), after


if __name__ == "__main__":
    sys.exit(main())
