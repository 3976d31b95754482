"""Where a trained editor lies (a file, a run folder, an exported folder, a name on the hub, in the package) and what
its header says. Imports nothing heavy: a place that holds none is told before a run folder is made or torch is loaded.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ivedit.errors import ConfigError, IveditError

__all__ = [
    "FORMAT", "HEADER", "INDEX_END", "SHIPPED", "is_hub_name", "read_editor_header", "read_index",
    "resolve_editor_file",
]  # fmt: skip

FORMAT = 1
HEADER = "ivedit"
"""The entry of a safetensors file's metadata that holds the header, as JSON."""

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
_INSTEAD = (
    "give a .safetensors file, the folder of a finished run, an exported folder, its name on the hub (USER/NAME), or "
    "`shipped`"
)
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
        ConfigError: there is none here.
        IveditError: there is none on the hub, or it cannot be fetched.
    """
    if str(reference) == "shipped":
        return SHIPPED
    path = Path(reference).expanduser()
    if path.is_dir():
        found = [path / place for place in _PLACES if (path / place).is_file()]
        if not found:
            raise ConfigError(
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
    raise ConfigError(f"no trained editor at {path}; {_INSTEAD}")


def read_editor_header(path: str | Path) -> dict[str, Any]:
    """The header of an editor file: format, config, shapes, fingerprint, extra.

    Args:
        path: a file or an index, as `resolve_editor_file` gives it back.

    Raises:
        ConfigError: no such file, or not one that `ivedit.editor.save_editor` or `write_editor` wrote.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no editor file at {path}")
    if path.name.endswith(INDEX_END):
        text = read_index(path)["metadata"].get(HEADER)
    else:
        try:
            with safe_open(path, framework="np") as file:  # the header alone is read, and torch is not imported
                text = (file.metadata() or {}).get(HEADER)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path} is not a safetensors file: {error}; {_INSTEAD}") from error
    if text is None:
        raise ConfigError(
            f"{path} is a safetensors file but holds no ivedit editor (no `{HEADER}` header); {_INSTEAD}"
        )
    try:
        header: dict[str, Any] = json.loads(text)
        version = header.get("format")
        if version == FORMAT:
            _ = header["config"]["variant"], header["shapes"].items(), header["fingerprint"], header["extra"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: its `{HEADER}` header is damaged ({error!r}); {_INSTEAD}") from error
    if version != FORMAT:
        raise ConfigError(f"{path} has editor format {version}; this version reads {FORMAT}")
    return header


def read_index(path: Path) -> dict[str, Any]:
    """The content of an index, all of whose parts lie beside it.

    Raises:
        ConfigError: it is none, or a part is elsewhere or missing.
    """
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        parts = sorted(set(index["weight_map"].values()))
        index["metadata"].get(HEADER)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not an index of safetensors files: {error}") from error
    if outside := [part for part in parts if Path(part).name != part]:
        raise ConfigError(f"{path} names {outside[0]!r}, which does not lie beside it")
    if missing := [part for part in parts if not (path.parent / part).is_file()]:
        raise ConfigError(f"{path.parent} is incomplete: {', '.join(missing)} is missing; fetch or export it again")
    return index


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
