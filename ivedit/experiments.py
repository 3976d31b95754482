"""Where the experiment and sweep files that ship with ivedit are, whichever way it was installed.

There is one copy of each, the top-level ``experiments/`` and ``sweeps/`` folders of the repository. A checkout (and an
editable install) reads them there; a wheel carries the same files as ``ivedit/experiments_data`` and
``ivedit/sweeps_data`` (see pyproject.toml).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ivedit.errors import ConfigError, nearest

__all__ = ["BASE", "QUICKSTART", "SWEEPS", "Shelf", "find", "folder", "names", "shown"]

BASE = "base"
QUICKSTART = "quickstart"


@dataclass(frozen=True)
class Shelf:
    """The shipped YAML files of one kind.

    ``what`` names one in messages, ``place`` is the top-level folder, ``order`` holds the beginnings of names in which
    to read about them, ``hidden`` are files that stand on the shelf but are no choice (and one that must be there).
    """

    what: str
    place: str
    order: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()

    def folder(self) -> Path:
        """The folder with the shipped YAML files. ConfigError when the installation lacks it."""
        package = Path(__file__).resolve().parent
        for candidate in (package / f"{self.place}_data", package.parent / self.place):
            if any(candidate.glob("*.yaml")):
                return candidate
        raise ConfigError(f"this installation has no {self.what} files beside {package}; install ivedit again")

    def names(self) -> list[str]:
        """Names of the shipped files, in the order in which to read about them."""
        found = sorted(path.stem for path in self.folder().glob("*.yaml") if path.stem not in self.hidden)
        return sorted(found, key=lambda name: next((i for i, s in enumerate(self.order) if name.startswith(s)), 99))

    def find(self, reference: str, relative_to: Path | None = None) -> Path:
        """The file that ``reference`` means: a shipped name, or a path ending in .yaml.

        A path is taken relative to ``relative_to`` (default: the working directory). ConfigError, with the nearest
        names, when there is no such file.
        """
        if reference.endswith((".yaml", ".yml")) or "/" in reference:
            path = Path(relative_to or Path.cwd(), Path(reference).expanduser())
            if path.is_file():
                return path.resolve()
            raise ConfigError(f"{self.what} file {reference} does not exist (looked for {path})")
        path = self.folder() / f"{reference}.yaml"
        if reference in self.hidden or (reference and path.is_file()):
            return path
        near = nearest(reference, self.names())
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(
            f"{self.what} {reference!r} is not known; {hint}`--help` lists all; ./FILE.yaml is one of yours"
        )


EXPERIMENTS = Shelf(
    "experiment",
    "experiments",
    (QUICKSTART, "imvideoedit", "ablation_", "control_", "baseline_", "paper_", "pretrain_"),
    (BASE,),
)
SWEEPS = Shelf("sweep", "sweeps", ("smoke", "ablations", "gate", "block_placement", "data_scale", "editor_"))

folder, names, find = EXPERIMENTS.folder, EXPERIMENTS.names, EXPERIMENTS.find
"""Of the experiments; ``names()`` is what ``experiment=`` takes."""


def shown(path: Path) -> str:
    """``path`` as messages print it: short for a shipped file, relative to the working directory where possible."""
    for shelf in (EXPERIMENTS, SWEEPS):
        if path.parent.name in (shelf.place, f"{shelf.place}_data") and path.parent == shelf.folder():
            return f"{shelf.place}/{path.name}"
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
