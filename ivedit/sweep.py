"""``python -m ivedit.sweep sweep=NAME key=value ...``: run a grid of arms and seeds, or an Optuna search.

The parent is light: no torch, no CUDA; every child is a process of `ivedit.run`. ``--help``, ``--print-config`` and
every error about the sweep answer from the configuration layer alone. Exit codes: 0 all slots have ended well or were
pruned, 1 a slot failed for good or the sweep could not go on, 2 it could not start as asked for, 130 interrupted (the
same command goes on).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ivedit.config.command_line import refuse, show, split_options
from ivedit.errors import ConfigError, IveditError
from ivedit.sweeping.describe import OPTIONS, dry_run, help_text
from ivedit.sweeping.resolve import resolve

if TYPE_CHECKING:
    from ivedit.sweeping.spec import Sweep

__all__ = ["main"]

ALSO_KEYS = ("--workers", "--launcher")
WITH_VALUE = {
    "--workers": "a number, e.g. --workers 4",
    "--launcher": "local or slurm, e.g. --launcher slurm",
    "--serve": "an address, e.g. --serve 0.0.0.0:13000",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options, settings = split_options(given, OPTIONS, WITH_VALUE)
        if "--help" in options:
            return show(help_text())
        if "--serve" in options:
            return _serve(options["--serve"], settings)
        settings += [f"{option.removeprefix('--')}={options[option]}" for option in ALSO_KEYS if option in options]
        sweep = resolve(settings)
        return _do(sweep, set(options) - set(ALSO_KEYS))
    except ConfigError as error:
        return refuse(error)
    except IveditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `--help | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _do(sweep: Sweep, options: set[str]) -> int:
    if len(options) > 1:
        raise ConfigError(f"{' and '.join(sorted(options))} each print something and stop; give one of them")
    if "--print-config" in options:
        from ivedit.sweeping.plan import sweep_yaml

        return show(sweep_yaml(sweep))
    _check_options(sweep)
    if "--dry-run" in options:
        return show(dry_run(sweep))
    if "--status" in options:
        from ivedit.sweeping.status import status_text

        return show(status_text(sweep))
    if "--report" in options:
        from ivedit.report import main as report

        return report([str(sweep.folder)])
    from ivedit.sweeping.launcher import launch

    return launch(sweep, workers=sweep.workers)


def _serve(address: str, settings: list[str]) -> int:
    """Optuna's gRPC proxy in front of a database, until Ctrl-C."""
    host, _, port = address.rpartition(":")
    urls = [item.partition("=")[2] for item in settings if item.startswith("storage=")]
    if not host or not port.isdecimal():
        raise ConfigError(f"--serve {address} is no address; write --serve {WITH_VALUE['--serve'].split()[-1]}")
    if len(settings) != 1 or len(urls) != 1:
        raise ConfigError("--serve needs the database and nothing else: storage=postgresql://USER@HOST/NAME")
    from ivedit.sweeping.storage import serve

    with contextlib.suppress(KeyboardInterrupt):
        serve(urls[0], host, int(port))
    return 0


def _check_options(sweep: Sweep) -> None:
    """Optuna's own word on the options that are passed to its sampler and pruner."""
    if sweep.kind != "search":
        return
    from ivedit.sweeping.proposals import check_options

    problems = check_options("sampler", sweep.sampler.name, sweep.sampler.options)
    if sweep.pruner is not None:
        problems += check_options("pruner", sweep.pruner.name, sweep.pruner.options)
    if problems:
        raise ConfigError(problems)


if __name__ == "__main__":
    sys.exit(main())
