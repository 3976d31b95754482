"""The evaluation at the end of a run: rows and controls on held-out clips, triage, gate, pictures, tables.

Everything lands in the run folder: results.json (every value of every clip, so that another table can be made from
it), results.md (to read), media/ (to see). The tracker is told of each file.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ivedit.config.schema import Config
from ivedit.data.progress import Progress
from ivedit.evaluation.clips import ClipSet, configured_clips
from ivedit.evaluation.gates import GateScores, score_gate
from ivedit.evaluation.metrics import skipped_metrics
from ivedit.evaluation.pictures import write_gate_pictures, write_media, write_success_chart
from ivedit.evaluation.readback import FACTS, SKIPPED, find_reader
from ivedit.evaluation.rows import Row, build_rows
from ivedit.evaluation.saving import EDITS, EditWriter
from ivedit.evaluation.scoring import Kept, RowScores, score_rows
from ivedit.evaluation.summary import differences, estimate, grouped, jsonable, operation_groups
from ivedit.evaluation.tables import format_table, table_rows
from ivedit.evaluation.triage import triage
from ivedit.recording import Tracker
from ivedit.runfolder import RunFolder, list_gpus, write_text_atomic

__all__ = ["evaluate"]

log = logging.getLogger("ivedit.evaluation")

FORMAT = 1
"""Version of results.json."""

NO_GATE = {"skipped": "skipped (this variant has no gate)"}


def evaluate(
    cfg: Config, backbone: Any, editors: Mapping[str, Any], run: RunFolder, tracker: Tracker
) -> dict[str, Any]:
    """Measure ``editors`` and the controls as the ``evaluation`` section says; write and log everything.

    Args:
        cfg: The whole configuration.
        backbone: The frozen backbone, all parts loaded.
        editors: {row name: trained editor}; the first is the run's own. May be empty: controls only.
        run: Where results.json, results.md and media/ are written.
        tracker: Told of metrics, tables, pictures and files.

    Returns:
        The content of results.json.

    Raises:
        ConfigError: unknown controls, frames that the VAE cannot take, names that clash.
    """
    started = time.monotonic()
    clips = configured_clips(cfg, backbone)
    rows = build_rows(cfg, backbone, editors)
    reader = find_reader(backbone, backbone.device)
    scores, kept = score_rows(
        cfg,
        backbone,
        rows,
        clips,
        reader,
        keep=cfg.evaluation.strips,
        keep_latents=cfg.evaluation.gate_maps and bool(editors),
        writer=EditWriter(run.path / EDITS, clips.ids) if _keeps_edits(cfg) else None,
    )
    results = _results(cfg, backbone, rows, clips, scores)
    if cfg.evaluation.triage:
        per_clip = {name: scores[name].values for name in editors}
        results["triage"] = triage(cfg, backbone, editors, clips, per_clip)
    gates = _gates(cfg, backbone, editors, clips, kept)
    results["gate"] = {
        name: NO_GATE if gate is None else gate.as_dict(cfg.evaluation.bootstrap) for name, gate in gates.items()
    }
    results["seconds"] = round(time.monotonic() - started, 1)
    results["environment"] = _environment(run, backbone, editors)
    _write(list(editors), kept, gates, results, run, tracker)
    return results


def _keeps_edits(cfg: Config) -> bool:
    return cfg.evaluation.save_edits or cfg.judge.backend != "none"


def _results(
    cfg: Config, backbone: Any, rows: list[Row], clips: ClipSet, scores: Mapping[str, RowScores]
) -> dict[str, Any]:
    """The main table, as it stands in results.json."""
    resamples = cfg.evaluation.bootstrap
    needs_motion = clips.pairs.needs_motion.tolist()
    groups = operation_groups(clips.operations, needs_motion)
    table: dict[str, Any] = {}
    for row in rows:
        found = scores[row.name]
        table[row.name] = {
            "kind": row.kind,
            "metrics": {name: estimate(name, v, resamples).as_dict() for name, v in found.values.items()},
            "groups": grouped(found.values, groups, resamples),
            "per_frame": jsonable(found.per_frame.nanmean(dim=0)),
            "per_latent": jsonable(found.per_latent.nanmean(dim=0)),
            "readback": SKIPPED
            if found.readback is None
            else {fact: estimate(fact, found.readback[:, i], resamples).as_dict() for i, fact in enumerate(FACTS)},
            "seconds_per_clip": round(found.seconds / len(clips), 4),
            "per_clip": jsonable(found.values),
        }
    return {
        "format": FORMAT,
        "name": cfg.name,
        "split": cfg.evaluation.split,
        "frames": cfg.evaluation.frames,
        "thresholds": {"edited_db": cfg.evaluation.edited_db, "kept_db": cfg.evaluation.kept_db},
        "sampling": {
            "steps": cfg.sampling.steps,
            "scheduler": cfg.sampling.scheduler,
            "guidance": cfg.sampling.guidance,
            "shift": cfg.sampling.shift or backbone.spec.shift,
            "seed": cfg.sampling.seed,
        },
        "clips": [
            {"id": clip, "operation": operation, "instruction": instruction, "needs_motion": moving}
            for clip, operation, instruction, moving in zip(
                clips.ids, clips.operations, clips.pairs.instruction, needs_motion, strict=True
            )
        ],
        "rows": table,
        "skipped": skipped_metrics(cfg.evaluation),
        "paired": differences({name: found.values for name, found in scores.items()}, resamples),
    }


def _gates(
    cfg: Config, backbone: Any, editors: Mapping[str, Any], clips: ClipSet, kept: Kept
) -> dict[str, GateScores | None]:
    """Each editor's gate against the true masks; None for a variant without one."""
    if not cfg.evaluation.gate_maps:
        return {}
    found: dict[str, GateScores | None] = {}
    with Progress("gate", len(editors)) as progress:
        for name, editor in editors.items():
            found[name] = score_gate(
                backbone,
                editor,
                clips,
                kept.latents,
                text=cfg.text,
                seed=cfg.sampling.seed,
                batch_size=cfg.evaluation.batch_size,
            )
            progress.advance(1)
    return found


def _environment(run: RunFolder, backbone: Any, editors: Mapping[str, Any]) -> dict[str, Any]:
    """What the footer says: which weights, which versions, which machine, when."""
    stored = run.path / "environment.json"
    machine = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    return {
        "backbone": backbone.spec.name,
        "backbone_fingerprint": backbone.spec.fingerprint,
        "editors": {
            name: {"variant": editor.name, "trained_weights": sum(p.numel() for p in editor.parameters())}
            for name, editor in editors.items()
        },
        "device": str(backbone.device),
        "packages": machine.get("packages", {}),
        "gpus": list_gpus(machine.get("gpus", [])),
        "git_commit": machine.get("git_commit"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _write(
    names: list[str],
    kept: Kept,
    gates: Mapping[str, GateScores | None],
    results: dict[str, Any],
    run: RunFolder,
    tracker: Tracker,
) -> None:
    """results.json, results.md, media/, and the tracker's copies of them."""
    pictures = write_media(run.media, kept, names, results)
    pictures["success"] = write_success_chart(run.media / "success.png", results)
    for name, gate in gates.items():
        if gate is not None:
            written = write_gate_pictures(run.media, name, gate)
            # The run's own go without its name: a page that compares runs lines pictures up by key.
            pictures |= {key if name == names[0] else f"{name}-{key}": path for key, path in written.items()}
    results["media"] = sorted(str(path.relative_to(run.path)) for path in pictures.values())
    run.write_results(results)
    write_text_atomic(run.path / "results.md", format_table(results) + "\n")

    for key, path in pictures.items():
        if path.suffix == ".png":
            tracker.log_image(path, f"evaluation/{key}", 0)
        else:
            tracker.log_artifact(path, "media")
    for path in (run.path / "results.json", run.path / "results.md"):
        tracker.log_artifact(path)
    tracker.log_table("evaluation", table_rows(results))
    tracker.log_metrics(_flat_metrics(results, names), 0)
    log.info("evaluated %d clips in %.0f s", len(results["clips"]), results["seconds"])


def _flat_metrics(results: Mapping[str, Any], names: list[str]) -> dict[str, float]:
    """Numbers to compare runs by: the run's own editor under ``eval/``, every other row under ``eval/<row>/``."""
    flat: dict[str, float] = {}

    def put(key: str, found: Mapping[str, Any]) -> None:
        if found["mean"] is not None:
            flat[key] = found["mean"]

    for name, row in results["rows"].items():
        prefix = "eval" if names and name == names[0] else f"eval/{name}"
        for metric, found in row["metrics"].items():
            put(f"{prefix}/{metric}", found)
        if names and name == names[0]:
            for group, found in row["groups"].items():
                put(f"{prefix}/success_{group}", found["success"])
    own = results.get("gate", {}).get(names[0], {}) if names else {}
    if "auc" in own:
        put("eval/gate_auc", own["auc"])
    return flat
