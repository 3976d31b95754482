"""A sweep's folder as a finished sweep leaves it, with values of a known truth: real files, simulated runs."""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import yaml

from ivedit.config import load
from ivedit.errors import ConfigError
from ivedit.evaluation.statistics import mean_interval, share_interval
from ivedit.runfolder import RunFolder, write_json_atomic
from ivedit.sweeping.plan import build_stage, keep_definition
from ivedit.sweeping.resolve import resolve

ARMS = ["imvideoedit", "ablation_no_gate", "ablation_plain"]
CLAIMS = [
    {"better": "imvideoedit", "than": "ablation_no_gate", "metric": "edited_psnr"},
    {"better": "imvideoedit", "than": "ablation_plain", "metric": "edited_psnr"},
]
TRUTH = {"imvideoedit": 20.0, "ablation_no_gate": 18.0, "ablation_plain": 19.9}
"""Mean PSNR of the edited region, dB: the first claim is true, the second is true by too little to be found."""

OPERATIONS = ("recolour", "remove", "style")


def sweep_folder(
    place: Path, *, arms: Sequence[Any] = ARMS, seeds: Sequence[int] = (0, 1, 2), claims: Any = CLAIMS, clips: int = 60,
    truth: Mapping[str, float] = TRUTH, ended: int | None = None, failed: Sequence[int] = (), name: str = "trio",
    strips: int = 0, tune: Any = None,
) -> Path:  # fmt: skip
    """Write ``place/<name>``: of the slots the first ``ended`` (None: all) have run, ``failed`` without results."""
    content = {
        "kind": "grid", "summary": "Simulated arms.", "arms": list(arms), "seeds": list(seeds), "claims": list(claims),
        "settings": {"evaluation.clips": clips, "evaluation.frames": 17},
    }  # fmt: skip
    if tune:
        content["tune"] = tune
    file = place / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content))
    sweep = resolve([f"sweep={file}", f"output_dir={place}", "tracking.kind=none"])
    keep_definition(sweep)
    stage = build_stage(sweep, "final", lambda _: ())
    hard = np.random.default_rng(0).normal(0, 4, clips)  # the same clips for all arms and seeds
    for slot, cell in enumerate((stage.cells or ())[:ended]):
        run = make_run(sweep.runs / stage.folder_name(slot), str(cell.arm), cell.seed, settings=cell.settings)
        if slot in failed:
            run.update_status(state="FAILED", reason="the loss was not finite")
            continue
        write_results(run, str(cell.arm), cell.seed, truth[str(cell.arm)] + hard)
        for number in range(strips):
            frames(run, str(cell.arm), number)
        run.update_status(state="FINISHED")
    return sweep.folder


def make_run(path: Path, arm: str, seed: int, *, settings: Sequence[str] = ()) -> RunFolder:
    """A run folder that has trained 400 steps of 0.25 s."""
    cfg = copy.deepcopy(_config(arm))
    cfg.seed, cfg.name = seed, arm
    cfg.tracking.tags = {"arm": arm, "stage": "final"}
    cfg.evaluation.frames = 17
    run = RunFolder(path)
    for folder in (run.path, run.media, run.checkpoints):
        folder.mkdir(parents=True, exist_ok=True)
    run.write_config(cfg)
    write_json_atomic(run.path / "environment.json", {"packages": {}, "gpus": [], "git_commit": "c" * 40})
    write_json_atomic(run.path / "status.json", {
        "state": "RUNNING", "reason": None, "started": "2026-11-22T09:00:00+00:00", "ended": None,
        "id": uuid.uuid4().hex, "mlflow_run_id": None,
    })  # fmt: skip
    rows = [{"step": s, "time": 1000 + s / 4, "train/loss": 1 / s} for s in range(20, 401, 20)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def write_results(run: RunFolder, arm: str, seed: int, edited: np.ndarray) -> None:
    """Results whose edited region scores ``edited`` plus a seed's luck and chance, reproducibly."""
    random = np.random.default_rng([seed, *arm.encode()])
    edited = edited + random.normal(0, 0.3) + random.normal(0, 1.5, len(edited))
    kept = np.where(np.arange(len(edited)) % 10 == 9, np.nan, 30 + random.normal(0, 1, len(edited)))
    values = {"success": (edited > 18).astype(float), "edited_psnr": edited, "kept_psnr": kept}
    low = {name: np.full(len(edited), number) for name, number in (("success", 0.0), ("edited_psnr", 9.0))}
    rows = {arm: _row("editor", values)}
    rows |= {name: _row("control", {**low, "kept_psnr": kept * 0 + 40}) for name in ("source_copy", "frozen")}
    run.write_results({
        "format": 1, "name": arm, "split": "test", "frames": 17, "thresholds": {"edited_db": 18.0, "kept_db": 20.0},
        "sampling": {"steps": 25, "scheduler": "euler", "guidance": 1.0, "shift": 3.0, "seed": 0},
        "clips": [
            {"id": f"test-{i}", "operation": OPERATIONS[i % 3], "instruction": f"edit {i}", "needs_motion": False}
            for i in range(len(edited))
        ],
        "rows": rows, "paired": {}, "seconds": 5.0,
        "environment": {
            "backbone": "wan-sprites", "backbone_fingerprint": "ab" * 32, "packages": {"torch": "2.13.0"}, "gpus": [],
            "editors": {arm: {"variant": "predict_update", "trained_weights": 10_500_000}}, "device": "cpu",
            "git_commit": "c" * 40, "date": "2026-11-22 10:00 UTC",
        },
    })  # fmt: skip


def frames(run: RunFolder, arm: str, number: int) -> None:
    """The bare frames of a clip as an evaluation keeps them; the edit in a colour of the arm's own."""
    folder = run.media / "frames"
    folder.mkdir(exist_ok=True)
    edit = tuple(50 + 10 * (b % 20) for b in arm.encode()[-3:])
    for kind, colour in (("source", (200, 200, 200)), ("edit", edit), ("truth", (20, 20, 20))):
        PIL.Image.new("RGB", (384, 64), colour).save(folder / f"{number:02d}-{OPERATIONS[number % 3]}-{kind}.png")


def _row(kind: str, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    def shown(name: str, v: np.ndarray) -> Any:
        return (share_interval(v) if name == "success" else mean_interval(v, resamples=100)).as_dict()

    return {
        "kind": kind, "metrics": {name: shown(name, v) for name, v in values.items()}, "groups": {},
        "readback": "skipped", "seconds_per_clip": 0.5,
        "per_clip": {name: [None if x != x else round(float(x), 6) for x in v] for name, v in values.items()},
    }  # fmt: skip


@lru_cache
def _config(arm: str) -> Any:
    try:
        return load(arm)
    except ConfigError:  # a name of its own, which is no experiment
        return load("imvideoedit")
