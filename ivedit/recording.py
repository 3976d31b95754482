"""Recording a run: how training and evaluation say what happened, and the files that this becomes.

`Tracker` writes the run folder and nothing else, so it is all that ``tracking.kind=none`` needs;
`ivedit.tracking` adds the mirror in MLflow. Whatever is recorded lands in the folder (metrics.jsonl,
tracked.json, images.jsonl, tables/, artifacts/, media/), because a run must be importable into MLflow later,
from its folder alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ivedit.runfolder import RunFolder, redact, write_json_atomic

_NOT_SETTINGS = ("name", "summary", "output_dir", "resume", "tracking", "judge")
"""Where a run stands, what it is called, who judges it afterwards: neither parameters to compare nor part of the
configuration's hash."""

_ONLY_EDIT = ("backbone", "editor", "text", "flow", "sampling", "evaluation", "init_from")
"""Sections that mean nothing to the pretraining tasks."""

_ALWAYS = ("seed", "editor.variant", "editor.gate", "data.pairs", "train.epochs", "train.batch_size", "train.lr")
_NEVER = (
    "train.log_every", "train.validate_every", "train.checkpoint_every", "train.max_minutes", "train.accelerator",
    "train.threads", "train.capture", "data.workers", "data.cache", "data.cache_dir", "data.encode_batch",
    "data.validation_pairs",
    "evaluation.batch_size", "evaluation.triage", "evaluation.triage_pairs", "evaluation.strips",
    "evaluation.bootstrap", "evaluation.gate_maps", "evaluation.controls", "evaluation.editors",
    "evaluation.save_edits", "plugins",
)  # fmt: skip
"""What a run does on the way, whatever comes out."""


class Tracker:
    """Writes the run folder only (``tracking.kind=none``); the base of every tracker."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers at an optimiser step. Names group by their part before the slash: ``train/loss``."""
        self.run.append_metrics(values, step)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Facts that the configuration does not hold, such as the number of trained weights."""
        self._remember("params", params)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Words to find runs by."""
        self._remember("tags", tags)

    def log_artifact(self, path: str | Path, folder: str | None = None) -> Path:
        """Keep a file, copied into ``artifacts/<folder>`` when from elsewhere. Returns its place."""
        path = Path(path).resolve()
        if path.is_relative_to(self.run.path):
            return path
        place = self.run.path / "artifacts" / (folder or "")
        place.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy2(path, place / path.name))

    def log_image(self, image: Any, key: str, step: int) -> Path:
        """A picture (a file, or a PIL image, which is saved under media/) shown over steps under ``key``."""
        key = re.sub(r"[^\w./ -]", "_", key, flags=re.ASCII)
        if isinstance(image, (str, Path)):
            path = self.log_artifact(image, "images")
        else:
            path = self.run.media / f"{key.replace('/', '-')}-{step:06d}.png"
            path.parent.mkdir(exist_ok=True)
            image.save(path)
        place = path.relative_to(self.run.path).as_posix()
        entry = {"key": key, "step": int(step), "time": round(time.time(), 3), "path": place}
        with open(self.run.path / "images.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self._mirror_image(entry)
        latest = {logged["key"]: logged["path"] for logged in read_images(self.run)}
        shown = {key: {"type": "image", "filepath": file, "compressed_filepath": file} for key, file in latest.items()}
        self._write_table("pictures", [{"picture": key, "image": cell} for key, cell in shown.items()])
        return path

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """A table, one mapping per row; MLflow's table view shows it beside other runs'."""
        return self._write_table(name, rows)

    def _write_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """In the form that MLflow's table view reads, where a cell may be a picture."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        path = self.run.path / "tables" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        data = [[row.get(key) for key in columns] for row in rows]
        write_json_atomic(path, {"columns": columns, "data": data})
        return path

    def flush(self) -> None:
        """Send what is waiting."""

    def finish(self, state: str = "FINISHED", reason: str | None = None) -> None:
        """End the run: FINISHED, FAILED, STOPPED or PRUNED, with the reason for all but the first."""
        self.run.update_status(state=state, reason=redact(reason) if reason else None)

    def hint(self) -> str:
        """One line that tells the user where to look."""
        return f"imported into MLflow by: python -m ivedit.report --import {self.run.path}"

    def _mirror_image(self, entry: Mapping[str, Any]) -> None:
        """Nothing to mirror to."""

    def _remember(self, kind: str, values: Mapping[str, Any]) -> None:
        record = read_record(self.run)
        record[kind].update({key: str(value) for key, value in values.items()})
        write_json_atomic(self.run.path / "tracked.json", record)


class SilentTracker(Tracker):
    """Ranks other than 0: the same calls, no effect."""

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """No effect."""

    def log_artifact(self, path: str | Path, folder: str | None = None) -> Path:
        """No effect; the path as given."""
        return Path(path)

    def log_image(self, image: Any, key: str, step: int) -> Path:
        """No effect."""
        return Path(image) if isinstance(image, (str, Path)) else self.run.media

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """No effect."""
        return self.run.path / "tables" / f"{name}.json"

    def finish(self, state: str = "FINISHED", reason: str | None = None) -> None:
        """No effect."""

    def _remember(self, kind: str, values: Mapping[str, Any]) -> None:
        """No effect."""


def read_record(run: RunFolder) -> dict[str, dict[str, str]]:
    """Parameters and tags that the run logged beside its configuration: ``{"params": {}, "tags": {}}``."""
    path = run.path / "tracked.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {"params": stored.get("params", {}), "tags": stored.get("tags", {})}


def read_images(run: RunFolder) -> list[dict[str, Any]]:
    """The logged pictures, ``{"key", "step", "time", "path"}`` each; the last of one key and step."""
    path = run.path / "images.jsonl"
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            found[entry["key"], entry["step"]] = entry
        except (json.JSONDecodeError, KeyError):
            continue  # a line that a kill cut short
    return list(found.values())


def relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that makes two runs of its task differ."""
    task = str(config.get("task"))
    unused = ("pretrain",) if task == "edit" else _ONLY_EDIT if task.startswith("pretrain_") else ()
    return {key: value for key, value in config.items() if key not in _NOT_SETTINGS and key not in unused}


def telling(config: Mapping[str, Any]) -> dict[str, str]:
    """Flattened settings that tell a run from others: a few always, the rest where they differ from the defaults.

    A page that compares runs prints all parameters beside every picture: a hundred of them bury it.
    """
    default = default_settings()
    every = flatten(relevant(config))
    return {
        key: value
        for key, value in every.items()
        if key in _ALWAYS or (default.get(key) != value and not key.startswith(_NEVER))
    }


@functools.cache
def default_settings() -> Mapping[str, str]:
    """The schema's defaults, flattened."""
    from omegaconf import OmegaConf

    from ivedit.config.schema import Config

    return flatten(cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(Config()))))


def config_hash(config: Mapping[str, Any]) -> str:
    """12 hex digits, equal for runs with the same settings whatever their seed, name and place."""
    settings = {key: value for key, value in relevant(config).items() if key != "seed"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"train": {"lr": 0.1}}`` to ``{"train.lr": "0.1"}``; lists and None become JSON."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def standard_tags(run: RunFolder) -> dict[str, str]:
    """Words to find and group a run by: experiment, task, seed, configuration hash, folder, git commit, variant."""
    config = run.config()
    tags = {name: str(config.get(key)) for name, key in (("experiment", "name"), ("task", "task"), ("seed", "seed"))}
    tags |= {"config_hash": config_hash(config), "run_folder": str(run.path)}
    environment = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))
    if environment.get("git_commit"):
        tags["git"] = environment["git_commit"] + (" with changes" if environment.get("git_changed") else "")
    if config.get("task") == "edit":
        editor = config.get("editor") or {}
        tags["variant"] = f"{editor.get('variant')}, gate {editor.get('gate')}"
    return tags
