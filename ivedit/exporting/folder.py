"""Write the folder of an exported editor: weights, settings, card and samples, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import ivedit
from ivedit.editor import read_editor_weights, write_editor
from ivedit.errors import ConfigError, IveditError
from ivedit.exporting.card import card
from ivedit.exporting.record import CARD, Record, is_export
from ivedit.exporting.scrub import scrub

__all__ = ["DTYPES", "Exported", "Wishes", "check_place", "export_editor"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHARD_BYTES = 5_000_000_000
"""The hub's advice for one file."""

_SAMPLES = "samples"


@dataclass(frozen=True)
class Wishes:
    """How to export.

    Attributes:
        dtype: float32 or bfloat16.
        max_bytes: of one file of weights.
        base_model: hub name of the backbone, where the run does not tell it.
        license: of the weights; None: apache-2.0 for editors trained on sprites, else none is stated.
        samples: whether pictures of held-out edits go along; None: for sprites only, whose pictures are nobody's.
        hub: USER/NAME under which the card says it is loaded.
    """

    dtype: str = "float32"
    max_bytes: int = SHARD_BYTES
    base_model: str | None = None
    license: str | None = None
    samples: bool | None = None
    hub: str | None = None


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: it.
        files: {path inside of it: bytes}, in the order of their names.
        license: stated on the card.
    """

    folder: Path
    files: dict[str, int]
    license: str | None


def check_place(out: Path) -> None:
    """Refuse a place that is not new, empty, or an earlier export without anything else in it.

    Raises:
        ConfigError: it says what is in the way.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{out} is a file; give a folder")
    held = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir())
    own = ("editor", f"{_SAMPLES}/strip-", CARD, "config.yaml")
    if held and (not is_export(out) or (foreign := [name for name in held if not name.startswith(own)])):
        what = foreign[0] if is_export(out) else held[0]
        raise ConfigError(f"{out} holds something else ({what}); give a new folder")


def export_editor(
    record: Record, out: str | Path, wishes: Wishes | None = None, *, difference: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Exported:  # fmt: skip
    """Write ``editor.safetensors`` (or its parts), ``config.yaml``, ``README.md`` and ``samples/``.

    The folder appears when all of it is there; an earlier export in its place is replaced.

    Args:
        record: from `read_run`.
        out: new folder.
        wishes: see `Wishes`.
        difference: from `velocity_difference`, for the card.
        weights: the record's own, where they are in memory already.

    Raises:
        ConfigError: something else lies there.
        IveditError: it cannot be written.
    """
    wishes, out = wishes or Wishes(), Path(out)
    check_place(out)
    held = read_editor_weights(record.file) if weights is None else weights
    tensors = {name: value.to(DTYPES[wishes.dtype]).contiguous() for name, value in held.items()}
    license = wishes.license or ("apache-2.0" if record.sprites else None)
    samples = record.sprites if wishes.samples is None else wishes.samples
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise IveditError(f"cannot write {out}: {error.strerror}") from error
    try:
        base_model = record.base_model(wishes.base_model)
        write_editor(partial / "editor.safetensors", tensors, _header(record, base_model), max_bytes=wishes.max_bytes)
        sizes = {path.name: path.stat().st_size for path in sorted(partial.glob("editor*.safetensors"))}
        strips = record.strips if samples else []
        for path in strips:
            (partial / _SAMPLES).mkdir(exist_ok=True)
            shutil.copyfile(path, partial / _SAMPLES / path.name)
        (partial / "config.yaml").write_text(yaml.safe_dump(record.config, sort_keys=False), encoding="utf-8")
        text = card(
            record, name=(wishes.hub or out.resolve().name).rpartition("/")[2], hub=wishes.hub, base_model=base_model,
            license=license, weights=sum(value.numel() for value in tensors.values()), files=sizes, dtype=wishes.dtype,
            difference=difference, strips=[f"{_SAMPLES}/{path.name}" for path in strips],
        )  # fmt: skip
        (partial / CARD).write_text(text, encoding="utf-8")
        for path in [partial, *partial.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)  # temporary files are private; this is to be shared
        _put(partial, out)
    except OSError as error:
        raise IveditError(f"cannot write {out}: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    files = {path.relative_to(out).as_posix(): path.stat().st_size for path in sorted(out.rglob("*")) if path.is_file()}
    return Exported(out, files, license)


def _header(record: Record, base_model: str | None) -> dict[str, Any]:
    """The editor's own header, free of paths, with where it comes from."""
    header = dict(record.header)
    extra = scrub(dict(header["extra"]))
    config = extra.get("config")
    if base_model and isinstance(config, dict):
        # What `ivedit.edit` loads when no backbone is named.
        extra["config"] = {**config, "backbone": {**(config.get("backbone") or {}), "path": base_model}}
    extra["export"] = {
        "base_model": base_model, "config_hash": record.config_hash, "ivedit": ivedit.__version__,
        "git_commit": record.environment.get("git_commit"),
    }  # fmt: skip
    return {**header, "extra": extra}


def _put(partial: Path, out: Path) -> None:
    """Rename the finished folder into its place; an earlier export stands there until then."""
    if not out.exists():
        os.replace(partial, out)
        return
    old = partial.with_name(partial.name + ".old")
    os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)
