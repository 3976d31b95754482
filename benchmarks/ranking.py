"""Do the judge-free metrics rank clips with known faults as they must be ranked? The table and pictures of the docs.

Five arms on the same clips: the true edit, and it frozen, with its frames shuffled or reversed, and blurred, made as
the anchors of a judge are (`ivedit.judge.anchor_clips`); and the source copy, which every table has. The clips are
sprites, and real media with programmatic edits (`tests/evaluation/real_media.py`). Each fault must show in its own
metric: there the true edit has to be better, clip by clip. The order is that of one score (`overall`).

    python benchmarks/ranking.py --record benchmarks/records/ranking.json --pictures docs/ranking
    python benchmarks/ranking.py --from benchmarks/records/ranking.json --update docs/evaluation.md
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

START, END = "<!-- ranking:start -->", "<!-- ranking:end -->"
ARMS = {"true_edit": "A1", "frozen": "A6", "shuffled": "A5", "blurred": "A7"}
SHOWN = ("edit_progress", "success", "edited_psnr", "kept_psnr", "warp_error", "motion_agreement", "motion_ratio",
         "flicker_ratio", "sharpness_ratio")  # fmt: skip
MUST = (
    ("source_copy", "edit_progress", "nothing was edited"),
    ("frozen", "motion_agreement", "nothing moves"),
    ("frozen", "warp_error", "nothing moves"),
    ("shuffled", "warp_error", "frames are out of order"),
    ("shuffled", "motion_agreement", "frames are out of order"),
    ("blurred", "sharpness_ratio", "detail is lost"),
)
"""(arm, metric in which the true edit must be better, why)."""


def scenes(sprites: int, real: int) -> dict[str, list[Any]]:
    """Clips of which every fault shows, by set."""
    import numpy as np

    from ivedit.judge.anchor_clips import AnchorScene, anchor_clip
    from ivedit.judge.anchor_scenes import sprite_scenes
    from tests.evaluation.real_media import real_clips

    media = [
        AnchorScene(clip.id, clip.source, clip.truth, np.zeros_like(clip.source), clip.mask, clip.instruction, i)
        for i, clip in enumerate(real_clips(real))
    ]
    sets = {"sprites": sprite_scenes(sprites, frames=17), "real media": media}
    return {
        name: [s for s in found if all(anchor_clip(s, kind, found) is not None for kind in ARMS.values())]
        for name, found in sets.items()
    }


def write(folder: Path, found: Sequence[Any]) -> None:
    """The arms as a folder of finished edits."""
    import torch

    from ivedit.evaluation.manifest import write_manifest
    from ivedit.judge.anchor_clips import anchor_clip
    from ivedit.media import write_video

    lines = []

    def put(place: str, clip: Any) -> str:
        pixels = torch.from_numpy(clip)
        pixels = pixels.expand(-1, 3, -1, -1).to(torch.uint8) * 255 if pixels.dtype == torch.bool else pixels
        write_video(folder / place, pixels.contiguous(), 8, lossless=True)
        return place

    for scene in found:
        shared = {
            "id": scene.name, "instruction": scene.instruction,
            "source": put(f"sources/{scene.name}.mp4", scene.source),
            "truth": put(f"truths/{scene.name}.mp4", scene.truth), "mask": put(f"masks/{scene.name}.mp4", scene.mask),
        }  # fmt: skip
        for arm, kind in ARMS.items():
            edited = put(f"{arm}/{scene.name}.mp4", anchor_clip(scene, kind, found))
            lines.append({**shared, "method": arm, "edited": edited})
    write_manifest(folder, sorted(lines, key=lambda line: list(ARMS).index(line["method"])))


def measure(sprites: int, real: int, pictures: Path | None) -> dict[str, Any]:
    """Score all arms and see whether each fault shows where it must."""
    from ivedit.config.schema import EvaluationConfig
    from ivedit.evaluation.finished import load_clip, score_finished
    from ivedit.evaluation.manifest import read_manifest
    from ivedit.media import film_strip

    record: dict[str, Any] = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "sets": {}}
    for name, found in scenes(sprites, real).items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            write(folder, found)
            manifest = read_manifest([folder])
            results = score_finished(manifest, EvaluationConfig())
            record["sets"][name] = summary(results)
            if pictures is not None:
                pictures.mkdir(parents=True, exist_ok=True)
                loaded = load_clip(manifest.clips[0])
                rows = {"source copy": loaded.source, **{a.replace("_", " "): p for a, p in loaded.edits.items()}}
                strip = film_strip(rows, 6, title=f'"{loaded.clip.instruction}"', cell=96)
                strip.save(pictures / f"{name.replace(' ', '_')}.png")
    return record


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """Means of every arm, and for each fault how often the true edit is better in the metric where it must be."""
    rows = {
        arm: {metric: row["metrics"][metric] for metric in SHOWN} for arm, row in results["rows"].items()
    }
    must = []
    for arm, metric, why in MUST:
        pairs = zip(
            *(results["rows"][row]["per_clip"][metric] for row in ("true_edit", arm)), strict=True
        )
        better = [goodness(metric, a) > goodness(metric, b) for a, b in pairs if a is not None and b is not None]
        must.append({"arm": arm, "metric": metric, "why": why, "better": sum(better), "clips": len(better)})
    return {"clips": len(results["clips"]), "rows": rows, "must": must, "order": order(results)}


def goodness(metric: str, value: float) -> float:
    """Larger is better."""
    from ivedit.evaluation.metrics import METRICS

    better = METRICS.info(metric)["better"]
    return {"higher": value, "lower": -value, "near 1": -abs(math.log(max(value, 1e-6)))}[better]


def order(results: dict[str, Any]) -> dict[str, float]:
    """Mean `overall` of every arm, the best first."""
    arms = results["rows"]
    found = {arm: [overall(results, arm, clip) for clip in range(len(results["clips"]))] for arm in arms}
    means = {arm: sum(values) / len(values) for arm, values in found.items()}
    return {arm: round(means[arm], 4) for arm in sorted(means, key=lambda arm: -means[arm])}


def overall(results: dict[str, Any], arm: str, clip: int) -> float:
    """Geometric mean of five shares from 0 to 1, so that an edit that misses one of them altogether gets 0.

    Edit progress; SSIM of the kept region; motion agreement, as near as the true edit's; steadiness 1 / (1 + flicker);
    sharpness, as near to the true edit's. A share without a value is left out.
    """
    row, true = (results["rows"][name]["per_clip"] for name in (arm, "true_edit"))
    value = {metric: row[metric][clip] for metric in row}
    shares = [value["edit_progress"], value["kept_ssim"]]
    if value["motion_agreement"] is not None:
        shares.append(1 - abs(value["motion_agreement"] - true["motion_agreement"][clip]))
    if value["flicker_ratio"] is not None:
        shares.append(1 / (1 + value["flicker_ratio"]))
    if value["sharpness_ratio"] is not None:
        shares.append(math.exp(goodness("sharpness_ratio", value["sharpness_ratio"])))
    known = [min(1.0, max(0.0, share)) for share in shares if share is not None]
    return math.prod(known) ** (1 / len(known))


def page(record: dict[str, Any], pictures: str) -> str:
    """The tables of the docs."""
    from ivedit.evaluation.metrics import METRICS
    from ivedit.evaluation.tables import cell_text, markdown_table, metric_label

    parts = []
    for name, found in record["sets"].items():
        head = ["arm", "overall ↑", *(metric_label(metric) for metric in SHOWN)]
        rows = [
            [arm.replace("_", " "), f"{score:.2f}",
             *(cell_text(metric, found["rows"][arm][metric], interval=False) for metric in SHOWN)]
            for arm, score in found["order"].items()
        ]  # fmt: skip
        must = [
            [f"true edit over {one['arm'].replace('_', ' ')}", METRICS.info(one["metric"])["label"], one["why"],
             f"{one['better']} of {one['clips']}"]
            for one in found["must"]
        ]  # fmt: skip
        parts += [
            f"**{name.capitalize()}**, {found['clips']} clips:",
            f"![Five arms of one clip]({pictures}/{name.replace(' ', '_')}.png)",
            markdown_table(head, rows),
            markdown_table(["must hold", "metric", "the fault", "clips in which it does"], must),
        ]
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sprites", type=int, default=44, help="sprite scenes (default: 44)")
    parser.add_argument("--real", type=int, default=40, help="clips of real media (default: 40)")
    parser.add_argument("--record", type=Path, help="write the numbers here")
    parser.add_argument("--pictures", type=Path, help="write the pictures into this folder")
    parser.add_argument("--from", dest="stored", type=Path, help="take the numbers from this record")
    parser.add_argument("--update", type=Path, help="put the tables between the markers of this page")
    given = parser.parse_args()
    if given.stored:
        record = json.loads(given.stored.read_text(encoding="utf-8"))
    else:
        record = measure(given.sprites, given.real, given.pictures)
    if given.record:
        given.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = page(record, "ranking")
    if given.update:
        before, _, rest = given.update.read_text(encoding="utf-8").partition(START)
        given.update.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
