"""The end of every evaluation: finished edits are measured and judged, and the table is written and logged.

``python -m ivedit.evaluate`` and a training run whose edits are judged both end here, on the same kind of manifest.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ivedit.config.schema import Config
from ivedit.data.progress import Progress
from ivedit.errors import IveditError
from ivedit.evaluation.finished import load_clip, score_finished
from ivedit.evaluation.finished_table import clip_rows, clips_csv, format_evaluation
from ivedit.evaluation.manifest import CONTROL, Manifest
from ivedit.judge.judged import Judged, judge_manifest, judge_plan, judgements_csv
from ivedit.media import film_strip
from ivedit.recording import Tracker
from ivedit.runfolder import RunFolder, list_gpus, write_json_atomic, write_text_atomic

__all__ = ["ANCHORS", "JSON", "RECORD", "TABLE", "finish_evaluation", "plan", "prove_judge"]

log = logging.getLogger("ivedit.evaluate")

JSON, TABLE, CLIPS = "evaluation.json", "evaluation.md", "clips.csv"
ANCHORS = "anchors.json"
RECORD = "artifacts/judge.jsonl"
"""The judge's replies, in the output folder; also a copy where they are kept elsewhere."""

STRIP_FRAMES, STRIP_CELL = 6, 128


def finish_evaluation(
    cfg: Config, manifest: Manifest, run: RunFolder, tracker: Tracker, device: str = "cpu"
) -> dict[str, Any]:
    """Measure and, with ``judge.backend`` set, judge finished edits; write and log everything.

    Args:
        cfg: Sections ``evaluation`` and ``judge``.
        manifest: Checked edits.
        run: Gets evaluation.json, evaluation.md, clips.csv, media/strip-*.png, artifacts/.
        tracker: Told of them.
        device: Where metrics are computed.

    Returns:
        The content of evaluation.json.

    Raises:
        IveditError: the judge cannot be asked, or its table is refused; the judge-free table is written before.
    """
    started = time.monotonic()
    results = score_finished(manifest, cfg.evaluation, device=device, name=cfg.name)
    results["environment"] = _environment(run, device)
    results["seconds"] = round(time.monotonic() - started, 1)
    _write(results, run)
    _pictures(manifest, results, run, tracker, cfg.evaluation.strips)
    judged = None
    if cfg.judge.backend != "none":
        judged = _judge(cfg, manifest, run)
        results["judge"] = judged.content
        results["judge_markdown"] = judged.markdown
        results["seconds"] = round(time.monotonic() - started, 1)
        _write(results, run)
        write_text_atomic(run.path / "artifacts" / "judgements.csv", judgements_csv(judged.judgements))
    _log(results, run, tracker)
    if judged is not None and "refused" in judged.content:
        raise IveditError(judged.content["refused"].replace("\n", "; "))
    return results


def prove_judge(cfg: Config, clips: str, run: RunFolder, tracker: Tracker) -> str:
    """Judge the anchors (see `ivedit.judge.proving`), keep anchors.json, and let later tables of this run carry it.

    Returns what they showed, in words.
    """
    from ivedit.judge.proving import prove

    record, kept = _record(cfg, run)
    said = prove(cfg.judge, clips, record, run.path / ANCHORS)
    if record.resolve() != kept.resolve():
        shutil.copy2(record, kept)
    cfg.judge.anchors = str(run.path / ANCHORS)
    tracker.log_artifact(run.path / ANCHORS)
    return said


def plan(cfg: Config, manifest: Manifest | None, *, anchors: str | None) -> Iterator[str]:
    """What the judge will cost, in lines; nobody is asked."""
    if cfg.judge.backend == "none":
        yield "no judge: judge.backend=none"
        return
    record = Path(cfg.judge.record).expanduser() if cfg.judge.record else None
    if anchors:
        from ivedit.judge.proving import anchor_plan

        yield f"anchors: {anchor_plan(cfg.judge, anchors, record)}"
    if manifest is not None:
        yield judge_plan(manifest, cfg.judge, record)


def _record(cfg: Config, run: RunFolder) -> tuple[Path, Path]:
    """Where replies are kept and found, and their place in the output folder."""
    kept = run.path / RECORD
    kept.parent.mkdir(parents=True, exist_ok=True)
    return Path(cfg.judge.record).expanduser() if cfg.judge.record else kept, kept


def _judge(cfg: Config, manifest: Manifest, run: RunFolder) -> Judged:
    record, kept = _record(cfg, run)
    methods = len(manifest.methods)
    asked = methods * len(cfg.judge.metrics) + methods * (methods - 1) * len(cfg.judge.pairwise)
    total = len(manifest.clips) * asked * cfg.judge.repeats
    with Progress("judging", total) as progress:
        judged = judge_manifest(
            manifest, cfg.judge, record, resamples=cfg.evaluation.bootstrap, advance=progress.advance
        )
    own = Path(str(cfg.judge.path)).expanduser() if cfg.judge.backend == "replay" else record
    if own.is_file() and own.resolve() != kept.resolve():
        shutil.copy2(own, kept)
    return judged


def _write(results: dict[str, Any], run: RunFolder) -> None:
    write_json_atomic(run.path / JSON, results)
    write_text_atomic(run.path / TABLE, format_evaluation(results) + "\n")
    write_text_atomic(run.path / CLIPS, clips_csv(results))


def _pictures(manifest: Manifest, results: dict[str, Any], run: RunFolder, tracker: Tracker, count: int) -> None:
    """A film strip of each of the first clips: source, every method with its PSNRs, truth."""
    run.media.mkdir(exist_ok=True)
    for number, clip in enumerate(manifest.clips[:count]):
        loaded = load_clip(clip)
        rows = {"source": loaded.source}
        for method, pixels in loaded.edits.items():
            rows[_marked(method, results, number)] = pixels
        if loaded.truth is not None:
            rows["truth"] = loaded.truth
        strip = film_strip(rows, STRIP_FRAMES, title=f'"{clip.instruction}"', cell=STRIP_CELL)
        path = run.media / f"strip-{number:02d}-{re.sub(r'[^A-Za-z0-9_.-]', '_', clip.id)}.png"
        strip.save(path)
        tracker.log_image(path, f"evaluation/{path.stem}", 0)


def _marked(method: str, results: dict[str, Any], number: int) -> str:
    """A method's name with the edited and kept PSNR of this clip."""
    per_clip = results["rows"][method]["per_clip"]
    values = [per_clip[name][number] for name in ("edited_psnr", "kept_psnr")]
    return f"{method}: {' / '.join('-' if value is None else f'{value:.0f}' for value in values)} dB"


def _log(results: dict[str, Any], run: RunFolder, tracker: Tracker) -> None:
    for name in (JSON, TABLE, CLIPS, RECORD, "artifacts/judgements.csv"):
        if (run.path / name).is_file():
            tracker.log_artifact(run.path / name)
    tracker.log_table("clips", clip_rows(results))
    judged = results.get("judge") or {}
    rows: list[dict[str, Any]] = []
    flat: dict[str, float] = {}
    for row, content in results["rows"].items():
        means = {name: content["metrics"][name]["mean"] for name in results["columns"]}
        means |= {f"judge.{name}": found["mean"] for name, found in judged.get("rows", {}).get(row, {}).items()}
        rows.append({"row": row, "kind": content["kind"], "clips": len(results["clips"]), **means})
        # one method's numbers are the run's own: pages that compare runs line them up by name
        prefix = "eval" if [row] == results["methods"] else f"eval/{row}"
        flat |= {f"{prefix}/{name}": value for name, value in means.items() if value is not None and row != CONTROL}
    tracker.log_table("finished_edits", rows)
    tracker.log_metrics(flat, 0)


def _environment(run: RunFolder, device: str) -> dict[str, Any]:
    machine = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))
    gpus = ", ".join(list_gpus(machine.get("gpus", [])))
    return {
        "device": gpus if device != "cpu" and gpus else machine.get("cpu", device),
        "packages": {name: machine["packages"][name] for name in ("ivedit", "torch") if name in machine["packages"]},
        "git_commit": machine.get("git_commit"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
