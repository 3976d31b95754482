"""The bars that the tiny pipeline has to reach, measured on held-out scenes: ``python -m ivedit.pretrain.bars FOLDER``.

Text-to-video goes through diffusers' own `WanPipeline` at its defaults (50 steps, guidance 5, texts padded to 512) and
is read back by the sprite reader, whose own error on true clips stands beside. Objects: an object counts when its shape
in its colour is seen in at least half of the frames. Direction: from the first to the last frame in which the object
is seen, the nearest of the eight directions; only objects captioned as moving, without bouncing, and found, count.
The ceiling: the true edited clip, noised to sigma 0.5 and denoised with its caption, in the edited region.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ivedit.errors import IveditError
from ivedit.pretrain.recipe import read_record, write_record

__all__ = ["BARS", "main", "measure"]

#: name -> (least value, what it is)
BARS: dict[str, tuple[float, str]] = {
    "vae_psnr": (30.0, "VAE reconstruction of clips, mean PSNR (dB)"),
    "vae_worst_frame_psnr": (28.0, "VAE reconstruction, worst frame index (dB)"),
    "objects_present": (0.90, "text-to-video: captioned shape in its colour present"),
    "worst_shape_present": (0.90, "text-to-video: the same for the worst shape"),
    "directions_right": (0.90, "text-to-video: direction of motion as captioned"),
    "ceiling_edited_psnr": (20.0, "true edit noised to sigma 0.5, denoised with its caption, edited region (dB)"),
}


def _read(pixels: Tensor, scenes: Any, reader: Any) -> dict[str, Any]:
    """Presence and direction of the scenes' objects in clips (B, T, 3, H, W)."""
    from ivedit.sprites.vocabulary import HEADINGS, SHAPES

    found = reader.read(pixels)
    hits: dict[str, list[bool]] = {name: [] for name in SHAPES}
    directions: list[bool] = []
    bounces = scenes.bounces
    for slot in range(scenes.present.shape[1]):
        seen = found.present(scenes.shape[:, slot], scenes.colour[:, slot])  # (B, T)
        place = found.place(scenes.shape[:, slot], scenes.colour[:, slot])  # (B, T, 2)
        for row in scenes.present[:, slot].nonzero().flatten().tolist():
            there = bool(seen[row].float().mean() >= 0.5)
            hits[SHAPES[int(scenes.shape[row, slot])]].append(there)
            twins = (
                scenes.present[row]
                & (scenes.shape[row] == scenes.shape[row, slot])
                & (scenes.colour[row] == scenes.colour[row, slot])
            ).sum()
            if not there or scenes.speed[row, slot] == 0 or bounces[row, slot] or twins > 1:
                continue
            times = seen[row].nonzero().flatten()
            dx, dy = (place[row, times[-1]] - place[row, times[0]]).tolist()
            x, y = HEADINGS[int(scenes.direction[row, slot])]
            angle = math.degrees(math.atan2(dy, dx) - math.atan2(y, x))
            directions.append(abs((angle + 180) % 360 - 180) <= 22.5 and math.hypot(dx, dy) > 3)
    shapes = {name: sum(values) / len(values) for name, values in hits.items() if values}
    everything = [value for values in hits.values() for value in values]
    return {
        "objects_present": sum(everything) / len(everything),
        "worst_shape_present": min(shapes.values()),
        "present_by_shape": {name: round(value, 4) for name, value in shapes.items()},
        "directions_right": sum(directions) / max(1, len(directions)),
        "objects": len(everything),
        "directions": len(directions),
    }


@torch.no_grad()
def measure(
    folder: str | Path,
    *,
    prompts: int = 256,
    clips: int = 243,
    seed: int = 77,
    device: str = "cpu",
    batch: int = 64,
    strip: str | Path | None = None,
) -> dict[str, Any]:
    """Measure every bar of `BARS` on a pipeline folder; more detail stands beside the bars' values.

    Args:
        folder: A complete pipeline folder with ``reader.safetensors``.
        prompts: Captions to generate from.
        clips: Held-out edits for the ceiling.
        seed: Of the held-out scenes (pretraining used other seeds) and of the noise.
        device: Where to run.
        batch: Clips at once.
        strip: Write a picture of some generated clips under their captions here.

    Returns:
        ``{bar: value}`` for every bar, PSNR in dB and shares in [0, 1], and details under other names.

    Raises:
        IveditError: The folder has no reader.
    """
    from diffusers import WanPipeline

    from ivedit.backbone import Backbone
    from ivedit.config.schema import SamplingConfig
    from ivedit.evaluation.clips import ClipSet
    from ivedit.evaluation.probes import ceiling_scores
    from ivedit.pretrain.tasks import clip_pool
    from ivedit.pretrain.vae import reconstruction_psnr
    from ivedit.sprites import FRAMES, captions, render, sample_pairs, sample_scenes
    from ivedit.sprites.reader import load_reader

    reader = load_reader(folder, device)
    if reader is None:
        raise IveditError(f"{folder} has no reader.safetensors: run experiment=pretrain_reader first")
    pipeline = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    psnr = reconstruction_psnr(pipeline.vae, clip_pool(seed, 256, torch.device(device)))
    scenes = sample_scenes(seed, torch.arange(4 * prompts), "pretrain")
    scenes = scenes[((scenes.style == 0) & scenes.present.any(1)).nonzero().flatten()[:prompts]]
    texts = captions(scenes, seed, torch.arange(len(scenes)))
    generated = []
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        noise = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        generated.append(
            pipeline(part, height=64, width=64, num_frames=FRAMES, output_type="pt", generator=noise).frames
        )
    video = torch.cat([torch.as_tensor(x, device=device) for x in generated])
    found = _read(video, scenes.to(device), reader)
    truth = _read(render(scenes.to(device)), scenes.to(device), reader)
    backbone = Backbone.load(str(folder), device=device, dtype="float32")
    edits = sample_pairs(seed, torch.arange(clips), "test", balanced=True)
    ceiling = {}
    for sigma in (0.5, 0.7):
        scores = ceiling_scores(
            backbone,
            ClipSet("bars", edits.to(device), torch.arange(FRAMES, device=device), 64),
            sigma,
            sampling=SamplingConfig(),
            batch_size=batch,
            edited_db=16.0,
            kept_db=20.0,
        )
        ceiling[sigma] = {name: float(scores[name].nanmean()) for name in ("edited_psnr", "kept_psnr")}
    if strip is not None:
        _picture(video, texts, Path(strip))
    return {
        "vae_psnr": float(psnr.mean()),
        "vae_worst_frame_psnr": float(psnr.mean(0).min()),
        "vae_psnr_by_frame": [round(v, 2) for v in psnr.mean(0).tolist()],
        **found,
        "ceiling_edited_psnr": ceiling[0.5]["edited_psnr"],
        "ceiling_edited_psnr_at_0.7": ceiling[0.7]["edited_psnr"],
        "reader_on_true_clips": {
            name: truth[name] for name in ("objects_present", "worst_shape_present", "directions_right")
        },
        "prompts": len(texts),
        "edits": clips,
        "seed": seed,
    }


def _picture(video: Tensor, texts: list[str], file: Path) -> None:
    """Twelve generated clips, six frames each, captions above."""
    import textwrap

    import numpy as np
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", (3 * 400, 4 * 140), "white")
    draw = ImageDraw.Draw(sheet)
    for i in range(min(12, len(texts))):
        x, y = (i % 3) * 400 + 4, (i // 3) * 140 + 2
        draw.text((x, y), "\n".join(textwrap.wrap(texts[i], 66)[:5]), fill="black", font_size=11)
        for j, t in enumerate((0, 3, 6, 10, 13, 16)):
            frame = (video[i, t].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy()
            sheet.paste(Image.fromarray(np.asarray(frame)), (x + j * 66, y + 70))
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)


def main(arguments: list[str] | None = None) -> int:
    """Print every bar and whether it is reached; exit code 1 when one is missed, 2 when nothing was measured."""
    parser = argparse.ArgumentParser(
        prog="python -m ivedit.pretrain.bars", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("folder", help="pipeline folder, e.g. ivedit/assets/wan-sprites")
    parser.add_argument("--prompts", type=int, default=256, help="captions to generate from (default 256)")
    parser.add_argument("--clips", type=int, default=243, help="held-out edits for the ceiling (default 243)")
    parser.add_argument("--seed", type=int, default=77, help="seed of the held-out scenes and the noise (default 77)")
    parser.add_argument("--batch", type=int, default=64, help="clips at once (default 64)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--strip", help="write a picture of generated clips here (PNG)")
    parser.add_argument(
        "--record", action="store_true", help="store the result in FOLDER/pretraining.json (then write the card anew)"
    )
    options = parser.parse_args(arguments)
    try:
        result = measure(
            options.folder,
            prompts=options.prompts,
            clips=options.clips,
            seed=options.seed,
            device=options.device,
            batch=options.batch,
            strip=options.strip,
        )
    except IveditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    missed = 0
    for name, (least, what) in BARS.items():
        reached = result[name] >= least
        missed += not reached
        print(f"{'reached' if reached else 'MISSED ':8}{result[name]:8.3f}  (bar {least:g})  {what}")
    print("reader on true clips: " + ", ".join(f"{k} {v:.3f}" for k, v in result["reader_on_true_clips"].items()))
    print(f"by shape: {result['present_by_shape']}")
    print(f"ceiling at sigma 0.7: {result['ceiling_edited_psnr_at_0.7']:.2f} dB")
    if options.record:
        write_record(options.folder, {**read_record(options.folder), "bars": result})
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
