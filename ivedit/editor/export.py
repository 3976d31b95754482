"""Trained editors as safetensors files: weights, and in the header the configuration and what it was trained on.

One file, or where that would be too large several (``editor-00001-of-00003.safetensors``) with an index beside them
that says which weight lies where, as on the hub. Where an editor
lies and how its header is read is `ivedit.config.editor_file`'s business.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ivedit.backbone import Backbone
from ivedit.backbone.spec import BackboneSpec
from ivedit.config import Config
from ivedit.config.editor_file import (
    FORMAT,
    HEADER,
    INDEX_END,
    read_editor_header,
    read_index,
    resolve_editor_file,
)
from ivedit.editor.base import Editor
from ivedit.editor.build import build_editor
from ivedit.editor.registry import VARIANTS
from ivedit.errors import ConfigError, IveditError

__all__ = [
    "check_editor", "check_editors", "load_editor", "read_editor_weights", "save_editor", "write_editor",
]  # fmt: skip

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
        "format": FORMAT,
        "config": editor.config,
        "shapes": editor.shapes,
        "fingerprint": backbone_fingerprint or (backbone.fingerprint() if backbone is not None else None),
        "extra": extra or {},
    }
    return write_editor(path, tensors, header)


def write_editor(
    path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any], *, max_bytes: int | None = None
) -> Path:
    """Write weights and header; a reader never sees half a file, and an index only beside all of its parts.

    Args:
        path: ``NAME.safetensors``.
        tensors: on the CPU, contiguous.
        header: as `read_editor_header` gives it back.
        max_bytes: of one file; beyond it the weights are cut into several. None: one file always.

    Returns:
        The file, or the index (``NAME.safetensors.index.json``).
    """
    metadata = {HEADER: json.dumps(dict(header), sort_keys=True)}
    if max_bytes is None or sum(t.numel() * t.element_size() for t in tensors.values()) <= max_bytes:
        _write_file(path, dict(tensors), metadata)
        return path
    from huggingface_hub import split_torch_state_dict_into_shards

    pattern = f"{path.stem}{{suffix}}{path.suffix}"
    split = split_torch_state_dict_into_shards(dict(tensors), filename_pattern=pattern, max_shard_size=max_bytes)
    for name, held in split.filename_to_tensors.items():
        _write_file(path.with_name(name), {key: tensors[key] for key in held}, metadata)
    index = path.with_name(path.name + INDEX_END)
    content = {"metadata": {**split.metadata, **metadata}, "weight_map": dict(split.tensor_to_filename)}
    partial = index.with_name(f".{index.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, index)
    return index


def _write_file(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    save_file(tensors, partial, metadata=metadata)
    os.replace(partial, path)


def read_editor_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """All weights of an editor file, or of an index and its parts, on the CPU in their stored type.

    Raises:
        IveditError: a part that is missing or no safetensors file.
    """
    path = Path(path)
    files = [path]
    if path.name.endswith(INDEX_END):
        files = [path.parent / name for name in sorted(set(read_index(path)["weight_map"].values()))]
    tensors: dict[str, torch.Tensor] = {}
    for part in files:
        try:
            with safe_open(part, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        except SafetensorError as error:
            raise IveditError(f"{part} is not a safetensors file: {error}") from error
    return tensors


def check_editor(path: str | Path, spec: BackboneSpec) -> dict[str, Any]:
    """The header of an editor that fits a backbone of these shapes; reads no weight of either.

    Raises:
        IveditError: not an editor file, a backbone of other shapes, or a variant of a plugin that is not imported.
    """
    path = resolve_editor_file(path)
    header = read_editor_header(path)
    mine, theirs = spec.shapes(), header["shapes"]
    differing = [f"{key} {theirs.get(key)} (here {mine[key]})" for key in mine if theirs.get(key) != mine[key]]
    if differing:
        raise IveditError(
            f"{path} was trained on a backbone of other shapes{_trained_on(header)}: {', '.join(differing)}. Load that "
            "backbone"
        )
    variant = header["config"]["variant"]
    if variant not in VARIANTS:
        raise IveditError(
            f"{path} is an editor of variant {variant!r}, which nothing here registers: import its module first (for a "
            f"run or an evaluation: plugins=[MODULE]); known: {', '.join(VARIANTS.names())}"
        )
    return header


def check_editors(cfg: Config, spec: BackboneSpec) -> None:
    """`check_editor` of every trained editor that a run starts from or will show as a row.

    Raises:
        ConfigError: one does not fit; the message names the setting.
    """
    places = {"init_from": cfg.init_from} if cfg.init_from else {}
    if cfg.evaluation.enabled:
        places |= {f"evaluation.editors.{row}": place for row, place in cfg.evaluation.editors.items()}
    for field, place in places.items():
        try:
            check_editor(place, spec)
        except IveditError as problem:
            raise ConfigError(f"{field}={place}: {problem}") from problem


def load_editor(
    path: str | Path, backbone: Backbone, *, map_location: str | torch.device | None = None,
    refuse_other_weights: bool = False, warn: Callable[[str], None] | None = None,
) -> Editor:  # fmt: skip
    """Build the editor a file describes and fill in its weights (float32).

    Args:
        path: a file, a run folder, an exported folder, a hub name or `shipped`, as `resolve_editor_file` takes.
        backbone: must have the shapes the editor was trained on.
        map_location: device; None: the backbone's.
        refuse_other_weights: whether another fingerprint is an error; otherwise it is warned about.
        warn: told of another fingerprint; None: a Python warning.

    Raises:
        IveditError: not an editor file, a backbone of other shapes (or weights), or weights that do not fit.
    """
    path = resolve_editor_file(path)
    header = check_editor(path, backbone.spec)
    trained_on = _trained_on(header)
    if header["fingerprint"] is not None and header["fingerprint"] != backbone.fingerprint():
        other = (
            f"{path} was trained on a backbone with other weights{trained_on} (fingerprint "
            f"{header['fingerprint'][:12]}, here {backbone.fingerprint()[:12]})"
        )
        if refuse_other_weights:
            raise IveditError(
                f"{other}. Load that backbone, or say any_weights=True (--any-weights) to try it on this one"
            )
        poor = f"{other}; results may be poor"
        if warn is None:
            warnings.warn(poor, stacklevel=2)
        else:
            warn(poor)
    editor = build_editor(header["config"], backbone)
    tensors = {name: tensor.float() for name, tensor in read_editor_weights(path).items()}
    own = editor.state_dict()
    wrong = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
    wrong += [name for name in tensors if name not in own]
    if wrong:
        raise IveditError(f"{path} does not fit its own configuration: {', '.join(sorted(wrong)[:3])} ...")
    editor.load_state_dict(tensors)
    return editor.to(map_location if map_location is not None else backbone.device)


def _trained_on(header: Mapping[str, Any]) -> str:
    """", NAME", where the header tells it."""
    name = ((header["extra"].get("config") or {}).get("backbone") or {}).get("path")
    return f", {name}" if name else ""
