"""Where the experiment files that ship with ivedit are, whichever way it was installed.

There is one copy, the top-level ``experiments/`` folder of the repository. A checkout (and an editable install)
reads it there; a wheel carries the same files as ``ivedit/experiments_data`` (see pyproject.toml).
"""

from __future__ import annotations

from pathlib import Path

from ivedit.errors import ConfigError, or_nearest

__all__ = ["BASE", "QUICKSTART", "find", "folder", "names", "shown"]

BASE = "base"
QUICKSTART = "quickstart"
_ORDER = (QUICKSTART, "imvideoedit", "ablation_", "control_", "baseline_", "pretrain_")


def folder() -> Path:
    """The folder with the shipped YAML files. ConfigError when the installation lacks it."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "experiments_data", package.parent / "experiments"):
        if (candidate / f"{BASE}.yaml").is_file():
            return candidate
    raise ConfigError(f"this installation has no experiment files beside {package}; install ivedit again")


def names() -> list[str]:
    """Names of the shipped experiments (what ``experiment=`` takes), in the order in which to read about them."""
    found = sorted(path.stem for path in folder().glob("*.yaml") if path.stem != BASE)
    return sorted(found, key=lambda name: next((i for i, start in enumerate(_ORDER) if name.startswith(start)), 99))


def find(reference: str, relative_to: Path | None = None) -> Path:
    """The file that ``reference`` means: a shipped name, or a path ending in .yaml.

    A path is taken relative to ``relative_to`` (default: the working directory). ConfigError, with the nearest
    names, when there is no such file.
    """
    if reference.endswith((".yaml", ".yml")) or "/" in reference:
        path = Path(relative_to or Path.cwd(), Path(reference).expanduser())
        if path.is_file():
            return path.resolve()
        raise ConfigError(f"experiment file {reference} does not exist (looked for {path})")
    path = folder() / f"{reference}.yaml"
    if reference == BASE or (reference and path.is_file()):
        return path
    hint = or_nearest(reference, names())
    raise ConfigError(f"experiment {reference!r} is not known: {hint} `--help` lists all; ./FILE.yaml is one of yours")


def shown(path: Path) -> str:
    """``path`` as messages print it: short for a shipped file, relative to the working directory where possible."""
    if path.parent == folder():
        return f"experiments/{path.name}"
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
