"""Peak memory of editing a long real-size clip: how much does a process hold while 600 frames of 480x832 go through?

    python benchmarks/long_clip.py --out benchmarks/records/long_clip.json

The transformer and the VAE's widths are tiny (random weights), so what is measured is the way of the pixels: decoding,
windows, the VAE's own buffers, cross-fading, writing. Sizes, factors (Wan 2.1: 8x in space, 4x in time; 2.2 5B: 16x in
space through patches of 2; the transformer's patches of 2), windows of 81 frames and the files are real. The
clip is edited by `ivedit.edit` in a process of its own, whose peak resident memory the operating system reports; the
same process with 1 frame tells what libraries and weights take.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # a clone that is not installed

CHILD = """\
import json, resource, sys, time
from ivedit import edit
started = time.monotonic()
code = edit.main(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"code": code, "peak_bytes": peak, "seconds": round(time.monotonic() - started, 1)}))
"""


VAES: dict[str, dict[str, Any]] = {
    "2.1": {"z_dim": 16},
    "2.2": {
        "z_dim": 48, "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16,
        "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
    },
}  # fmt: skip
"""Factors and channels of the two published VAEs."""


def backbone_folder(folder: Path, layout: str) -> Path:
    """A pipeline with Wan's factors and latent channels, one narrow block and a narrow VAE; random weights."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline

    from tests.backbone.tiny import tiny_text, tiny_transformer

    encoder, tokenizer = tiny_text()
    vae = AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=0, **VAES[layout])
    pipeline = WanPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=tiny_transformer(patch=(1, 2, 2), heads=1, head_dim=32, blocks=1, channels=vae.config.z_dim),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    (folder / "ivedit.json").write_text(json.dumps({"text_length": 12}))
    return folder


def editor_file(folder: Path, backbone_path: Path) -> Path:
    """An editor for it, as a run would save one."""
    from ivedit.backbone import Backbone
    from ivedit.config.schema import EditorConfig
    from ivedit.editor import build_editor, save_editor

    backbone = Backbone.load(backbone_path)
    editor = build_editor(EditorConfig(width=32), backbone)
    return save_editor(folder / "editor.safetensors", editor, backbone=backbone)


def write_clip(path: Path, frames: int, height: int, width: int) -> None:
    """A moving picture at 16 frames per second, written frame by frame."""
    import torch

    from ivedit.media import VideoWriter

    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    with VideoWriter(path, (height, width), 16) as writer:
        for t in range(frames):
            picture = torch.stack([(rows + 3 * t) % 256 + 0 * columns, (columns + 5 * t) % 256 + 0 * rows,
                                   (rows + columns) % 256])  # fmt: skip
            writer.write(picture.to(torch.uint8))


def measure(folder: Path, frames: int, size: tuple[int, int], drawn: tuple[int, int]) -> dict[str, Any]:
    """Edit a clip of ``frames`` in a child process; its peak memory and time."""
    clip = folder / f"clip-{frames}.mp4"
    write_clip(clip, frames, *size)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(clip), "make the circle blue", "--backbone", str(folder / "wan"), "--editor",
         str(folder / "editor.safetensors"), "--size", f"{drawn[0]}x{drawn[1]}", "--window", "81", "--overlap", "5",
         "--steps", "1", "--device", "cpu", "--out", str(folder / f"out-{frames}.mp4")],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    if found.pop("code"):
        raise SystemExit(done.stdout + done.stderr)
    return {"frames": frames, "clip": list(size), "drawn": list(drawn), **found}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON; 1 when a long clip takes more than ``--limit``."""
    parser = argparse.ArgumentParser(prog="long_clip.py", description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 81, 600])
    parser.add_argument("--layout", choices=sorted(VAES), default="2.1", help="of which Wan")
    parser.add_argument("--size", default="480x832", help="of the clip")
    parser.add_argument("--drawn", default="480x832", help="in which the backbone draws")
    parser.add_argument("--limit", type=float, default=3.0, metavar="GB")
    parser.add_argument("--out", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    size, drawn = (tuple(int(n) for n in text.split("x")) for text in (given.size, given.drawn))
    started, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        editor_file(folder, backbone_folder(folder / "wan", given.layout))
        print("| frames | peak memory, GB | time, s |\n|---|---|---|")
        for frames in given.frames:
            rows.append(measure(folder, frames, size, drawn))  # type: ignore[arg-type]
            print(f"| {frames} | {rows[-1]['peak_bytes'] / 1e9:.2f} | {rows[-1]['seconds']:.0f} |", flush=True)
    if given.out:
        from ivedit.runfolder import describe_environment, write_json_atomic

        about = describe_environment()
        about.pop("command")
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(given.out, {
            "benchmark": "long_clip", "layout": f"Wan {given.layout}", "window": 81, "overlap": 5, "rows": rows,
            "seconds": round(time.monotonic() - started), "environment": about,
        })  # fmt: skip
    return int(max(row["peak_bytes"] for row in rows) > given.limit * 1e9)


if __name__ == "__main__":
    sys.exit(main())
