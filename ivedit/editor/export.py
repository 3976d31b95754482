"""Trained editors as safetensors files: weights, and in the header the configuration and what it was trained on."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ivedit.backbone import Backbone
from ivedit.editor.base import Editor
from ivedit.editor.build import build_editor
from ivedit.errors import IveditError

__all__ = ["load_editor", "read_editor_header", "resolve_editor_file", "save_editor"]

_FORMAT = 1
_HEADER = "ivedit"


def save_editor(
    path: str | Path,
    editor: Editor,
    *,
    backbone: Backbone | None = None,
    backbone_fingerprint: str | None = None,
    extra: dict[str, Any] | None = None,
    weights: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write an editor so that a reader never sees half a file.

    Args:
        path: `.safetensors` file; its folder is made.
        editor: what to save.
        backbone: stores its shapes and, unless given, its fingerprint.
        backbone_fingerprint: of the backbone it was trained on.
        extra: JSON values to keep in the header (steps, data, text settings).
        weights: other values for the same names (an average), instead of the editor's own.
        dtype: storage type; None keeps float32.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = dict(editor.state_dict()) | (weights or {})
    tensors = {name: t.detach().to("cpu", dtype or t.dtype).contiguous() for name, t in state.items()}
    header = {
        "format": _FORMAT,
        "config": editor.config,
        "shapes": editor.shapes,
        "fingerprint": backbone_fingerprint or (backbone.fingerprint() if backbone is not None else None),
        "extra": extra or {},
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    save_file(tensors, partial, metadata={_HEADER: json.dumps(header, sort_keys=True)})
    os.replace(partial, path)
    return path


def read_editor_header(path: str | Path) -> dict[str, Any]:
    """The header of an editor file: format, config, shapes, fingerprint, extra.

    Raises:
        IveditError: no such file, or not one that `save_editor` wrote.
    """
    path = Path(path)
    if not path.is_file():
        raise IveditError(f"no editor file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER)
    except SafetensorError as error:
        raise IveditError(f"{path} is not a safetensors file: {error}") from error
    if text is None:
        raise IveditError(f"{path} is a safetensors file but holds no ivedit editor (no `{_HEADER}` header)")
    header: dict[str, Any] = json.loads(text)
    if header.get("format") != _FORMAT:
        raise IveditError(f"{path} has editor format {header.get('format')}; this version reads {_FORMAT}")
    return header


def load_editor(path: str | Path, backbone: Backbone, *, map_location: str | torch.device | None = None) -> Editor:
    """Build the editor a file describes and fill in its weights (float32).

    Args:
        path: a file, a run folder or `shipped`, as `resolve_editor_file` takes.
        backbone: must have the shapes the editor was trained on; another fingerprint is warned about.
        map_location: device; None: the backbone's.

    Raises:
        IveditError: not an editor file, a backbone of other shapes, or weights that do not fit.
    """
    path = resolve_editor_file(path)
    header = read_editor_header(path)
    mine, theirs = backbone.spec.shapes(), header["shapes"]
    differing = [f"{key} {theirs.get(key)} (here {mine[key]})" for key in mine if theirs.get(key) != mine[key]]
    if differing:
        raise IveditError(f"{path} was trained on a backbone of other shapes: " + ", ".join(differing))
    if header["fingerprint"] is not None and header["fingerprint"] != backbone.fingerprint():
        warnings.warn(
            f"{path} was trained on a backbone with other weights (fingerprint {header['fingerprint'][:12]}, here "
            f"{backbone.fingerprint()[:12]}); results may be poor",
            stacklevel=2,
        )
    editor = build_editor(header["config"], backbone)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  (not a dict)
    own = editor.state_dict()
    wrong = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
    wrong += [name for name in tensors if name not in own]
    if wrong:
        raise IveditError(f"{path} does not fit its own configuration: {', '.join(sorted(wrong)[:3])} ...")
    editor.load_state_dict(tensors)
    return editor.to(map_location if map_location is not None else backbone.device)


def resolve_editor_file(reference: str | Path) -> Path:
    """The safetensors file meant by a file, a run folder, or `shipped` (the editor that comes with the package).

    Raises:
        IveditError: there is none.
    """
    if str(reference) == "shipped":
        path = Path(__file__).resolve().parent.parent / "assets" / "editor-sprites.safetensors"
    else:
        path = Path(reference).expanduser()
        if path.is_dir():
            path = path / "checkpoints" / "editor.safetensors"
    if not path.is_file():
        raise IveditError(
            f"no trained editor at {path}; give a .safetensors file, the folder of a finished run, or `shipped`"
        )
    return path
