"""How long the judge-free metrics take, and how much memory: small clips in number, and one large clip.

Each arm is `python -m ivedit.evaluate`'s own code on a folder of finished edits made for it, in a process of its own:
checking the files, then measuring one method and the source copy. Two cores are used: two rows at a time, one thread
each. Seconds of CPU are what a busy machine cannot stretch much; wall seconds are to be read beside the load.

    python benchmarks/metrics_speed.py --out benchmarks/records/metrics_speed.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

ARMS = {
    "small": {"clips": 240, "frames": 17, "height": 64, "width": 64},
    "large": {"clips": 2, "frames": 81, "height": 480, "width": 832},
}


def make(folder: Path, arm: dict[str, int]) -> None:
    """Clips of a moving texture with a recoloured square, their true edits and masks."""
    import torch
    import torch.nn.functional as F

    from ivedit.evaluation.manifest import write_manifest
    from ivedit.media import write_video

    frames, height, width = arm["frames"], arm["height"], arm["width"]
    lines = []
    for number in range(arm["clips"]):
        noise = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(number))
        ground = F.interpolate(noise, (height + frames, width + frames), mode="bicubic").clamp(0, 1)[0]
        source = torch.stack([ground[:, t : t + height, t : t + width] for t in range(frames)])
        source = (source * 255).round().to(torch.uint8)
        truth = source.clone()
        rows, columns = slice(height // 4, height // 2), slice(width // 4, width // 2)
        truth[:, :, rows, columns] = truth[:, [2, 0, 1], rows, columns]
        edited = (truth.int() + 3).clamp(max=255).to(torch.uint8)
        line = {"id": str(number), "instruction": "change the square"}
        for field, clip in (("source", source), ("truth", truth), ("edited", edited)):
            line[field] = f"{field}/{number}.mp4"
            # as people have them: 480p as ordinary H.264, sprites without loss
            write_video(folder / line[field], clip, 16, lossless=height < 128)
        lines.append(line)
    write_manifest(folder, lines)


def child(folder: Path) -> None:
    """Check and measure, and print the times and the peak memory."""
    import resource

    import torch

    from ivedit.config.schema import EvaluationConfig
    from ivedit.evaluation.finished import score_finished
    from ivedit.evaluation.manifest import read_manifest

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in ("check", "measure"):
        wall, cpu = time.monotonic(), time.process_time()
        if name == "check":
            manifest = read_manifest([folder])
        else:
            score_finished(manifest, EvaluationConfig())
        found[name] = {"wall": round(time.monotonic() - wall, 2), "cpu": round(time.process_time() - cpu, 2)}
    found["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    print(json.dumps(found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=tuple(ARMS), action="append", help="which (default: both)")
    parser.add_argument("--clips", type=int, help="clips in place of an arm's own number")
    parser.add_argument("--out", type=Path, help="write the record here")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child)
        return 0
    from ivedit.runfolder import describe_environment

    about = describe_environment()
    record: dict[str, Any] = {
        "arms": {},
        "environment": {"cpu": about["cpu"], "packages": {n: about["packages"][n] for n in ("torch", "numpy", "av")}},
    }
    cores = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
    for name in given.arm or ARMS:
        arm = {**ARMS[name], **({"clips": given.clips} if given.clips else {})}
        with tempfile.TemporaryDirectory() as place:
            make(Path(place), arm)
            load = os.getloadavg()[0]
            done = subprocess.run(
                [sys.executable, __file__, "--child", place], capture_output=True, text=True, check=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
            )  # fmt: skip
        found = json.loads(done.stdout)
        record["arms"][name] = {**arm, **found, "load": [round(load, 1), round(os.getloadavg()[0], 1)]}
        per_clip = found["measure"]["wall"] / arm["clips"]
        print(
            f"{name}: {arm['clips']} clips of {arm['frames']} x {arm['height']} x {arm['width']}: checked in "
            f"{found['check']['wall']:.1f} s, measured in {found['measure']['wall']:.1f} s ({per_clip:.2f} s a clip; "
            f"{found['measure']['cpu']:.1f} s of CPU), at most {found['peak_gb']:.1f} GB; load {load:.0f} on 2 cores"
        )
    if given.out:
        given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
