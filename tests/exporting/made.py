"""A finished run of a tiny backbone, as `ivedit.run` leaves it behind, with a history full of private things."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ivedit.backbone import Backbone
from ivedit.config.schema import Config, EditorConfig
from ivedit.editor import build_editor, save_editor
from ivedit.media import to_pil
from ivedit.runfolder import RunFolder
from tests.backbone.tiny import save_pipeline

WORDS = "make the red circle blue"


def row(kind: str, **means: float) -> dict[str, Any]:
    return {
        "kind": kind,
        "metrics": {
            name: {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 9, "total": 9}
            for name, mean in means.items()
        },
    }


def results() -> dict[str, Any]:
    return {
        "format": 1, "name": "blue", "split": "val", "frames": 5, "thresholds": {"edited_db": 16.0, "kept_db": 20.0},
        "sampling": {"steps": 2, "scheduler": "euler", "guidance": 1.0, "shift": 3.0, "seed": 0},
        "clips": [{"id": f"val-{i}", "operation": "recolour", "instruction": WORDS} for i in range(9)],
        "rows": {
            "blue": row("editor", success=0.75, edited_psnr=25.94, kept_psnr=31.87),
            "frozen": row("control", success=0.125, edited_psnr=17.8, kept_psnr=18.9),
            "other": row("editor", success=0.5, edited_psnr=20.0, kept_psnr=30.0),
        },
    }  # fmt: skip


def trained(backbone: Backbone, seed: int = 0) -> Any:
    """An editor as after some training."""
    editor = build_editor(EditorConfig(width=24), backbone)
    with torch.no_grad():
        for weight in editor.parameters():
            generator = torch.Generator().manual_seed(seed + weight.numel())
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return editor


def make_run(
    folder: Path, backbone_path: Path | str, backbone: Backbone, *, evaluated: bool = True, reader: str = "sprites",
    pairs: int | None = None, buckets: Sequence[str] = (),
) -> Path:  # fmt: skip
    """A run folder with an editor for the backbone."""
    cfg = Config(name="blue", summary="Blue circles, for anna, from /home/anna/films.", output_dir=str(folder / "runs"))
    cfg.backbone.path = str(backbone_path)
    cfg.init_from = "/home/anna/earlier runs/editor.safetensors"
    cfg.data.reader, cfg.data.path, cfg.data.cache_dir = reader, "/data/private/films", "/scratch/anna/cache"
    cfg.data.height = cfg.data.width = 16
    cfg.data.buckets = list(buckets)
    cfg.sampling.steps = 2
    cfg.tracking.uri = "postgresql://anna:secret@10.0.0.7/mlflow"
    cfg.judge.base_url = "http://10.0.0.8:8000/v1"
    run = RunFolder.create(cfg)
    extra = {
        "run": cfg.name, "seed": 0, "step": 1234, "pairs": pairs,
        "config": {
            "backbone": {"path": str(backbone_path)}, "sampling": {"steps": 2, "shift": 3.0},
            "data": {"reader": reader, "height": 16, "width": 16}, "text": {"target": "instruction"},
        },
    }  # fmt: skip
    save_editor(run.checkpoints / "editor.safetensors", trained(backbone), backbone=backbone, extra=extra)
    if evaluated:
        run.write_results(results())
        run.media.mkdir(exist_ok=True)
        strip = torch.rand(3, 20, 60, generator=torch.Generator().manual_seed(0))
        to_pil(strip).save(run.media / "strip-00-recolour.png")
    run.update_status(state="FINISHED")
    return run.path


def make_backbone(folder: Path) -> tuple[Path, Backbone]:
    path = save_pipeline(folder)
    return path, Backbone.load(path)
