"""Where a trained editor lies: a file, a run folder, an exported folder, a name on the hub, or in the package."""

from __future__ import annotations

import re
from pathlib import Path

from ivedit.errors import IveditError

__all__ = ["INDEX_END", "SHIPPED", "is_hub_name", "resolve_editor_file"]

SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "editor-sprites.safetensors"

INDEX_END = ".index.json"
"""Behind the name of an editor that is cut into several files."""

_PLACES = (
    Path("checkpoints", "editor.safetensors"),
    Path("editor.safetensors"),
    Path("editor.safetensors" + INDEX_END),
)
"""In a folder: of a run, or an exported one."""

_PART = re.compile(r"-\d{5}-of-\d{5}(?=\.safetensors$)")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def is_hub_name(text: str) -> bool:
    """Whether this has the form USER/NAME, as models on the hub are called."""
    return bool(_HUB_NAME.fullmatch(text)) and len(text) <= 96


def resolve_editor_file(reference: str | Path) -> Path:
    """The safetensors file, or the index of several, that is meant.

    Args:
        reference: a file; a run folder; an exported folder; ``shipped`` (the editor that comes with the package); or
            USER/NAME of a model on the hub, which is fetched (and found again without a network).

    Raises:
        IveditError: there is none.
    """
    if str(reference) == "shipped":
        return SHIPPED
    path = Path(reference).expanduser()
    if path.is_dir():
        found = [path / place for place in _PLACES if (path / place).is_file()]
        if not found:
            raise IveditError(
                f"no trained editor at {path / _PLACES[0]} or {path / _PLACES[1]}; give a .safetensors file, the "
                "folder of a finished run, an exported folder, or `shipped`"
            )
        return found[0]
    if _PART.search(path.name):
        path = path.with_name(_PART.sub("", path.name) + INDEX_END)
    if path.is_file():
        return path
    if path.suffix != ".safetensors" and is_hub_name(str(reference)):
        return _fetch(str(reference))
    raise IveditError(
        f"no trained editor at {path}; give a .safetensors file, the folder of a finished run, an exported folder, its "
        "name on the hub (USER/NAME), or `shipped`"
    )


def _fetch(name: str) -> Path:
    """Download an editor from the hub, or find it in the hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=["editor*.safetensors", f"editor.safetensors{INDEX_END}"]))
    except Exception as error:  # the hub client raises many types for "no such name", "no network", "no access"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise IveditError(
            f"{name} is no local file or folder, and no editor of that name could be fetched from the hub: {reason}"
        ) from error
    for place in _PLACES[1:]:
        if (folder / place).is_file():
            return folder / place
    raise IveditError(f"{name} on the hub holds no trained editor (no editor.safetensors)")
