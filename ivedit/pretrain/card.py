"""Write the model card of a pipeline folder from its own record: ``python -m ivedit.pretrain.card FOLDER``.

Everything that can change stands in ``pretraining.json``, the parts' configurations and their weights, so the card is
made anew from them after each training piece and each measurement; a test fails when it is stale.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ivedit.errors import IveditError
from ivedit.pretrain.bars import BARS
from ivedit.pretrain.recipe import EXPERIMENTS, SETTINGS, read_record, settings_of

__all__ = ["CARD", "card", "main", "parameters"]

CARD = "README.md"
_SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "wan-sprites"

_PARTS = {
    "text_encoder": ("pretrain_text", "text encoder", "transformers `UMT5EncoderModel`"),
    "vae": ("pretrain_vae", "video VAE", "diffusers `AutoencoderKLWan`"),
    "transformer": ("pretrain_dit", "diffusion transformer", "diffusers `WanTransformer3DModel`"),
    "reader.safetensors": ("pretrain_reader", "reader (measures, no part of the pipeline)", "`SpriteReader`"),
}
"""Where a part lies -> the task that made it, what it is, its class; in the order of training."""

_TRAINED = {
    "pretrain_text": (
        "Masked words and neighbouring words of captions and instructions, 256 texts a step; then frozen. It has read "
        "every phrasing, also those of instructions that editing experiments hold out."
    ),
    "pretrain_vae": (
        "Reconstruction: root of the mean squared error of each latent frame's pixels, 0.1 L1, a KL term; single "
        "images for `image_steps`, then whole clips. Noise of the latents from torch's global generator."
    ),
    "pretrain_dit": (
        "Flow matching on latents of single frames and of clips, with their captions padded to 64 or to 512 tokens; "
        "one caption in ten is dropped; `edge_share` of the draws lie near the ends of the noise range."
    ),
    "pretrain_reader": (
        "Which shape and which colour covers each cell of a 32x32 grid, on rendered frames, blurred and noised a "
        "little. Nothing is trained against it."
    ),
}

_FINAL = {
    "masked_word_accuracy": ("masked words right, last step", "share"),
    "own_word_accuracy": ("unmasked words right, last step", "share"),
    "cell_accuracy": ("object cells right, last step", "share"),
    "psnr": ("PSNR on held-out clips", "dB"),
    "worst_frame_psnr": ("worst frame index", "dB"),
    "clip_loss": ("loss on clips, last step", ""),
    "frame_loss": ("loss on frames, last step", ""),
}


def parameters(file: str | Path) -> int:
    """Number of weights in a .safetensors file, from its header alone.

    Raises:
        IveditError: It is not such a file.
    """
    try:
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
    except (struct.error, ValueError, OverflowError) as error:
        raise IveditError(f"{file} is not a safetensors file: {error}") from error
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def card(folder: str | Path) -> str:
    """The text of the model card.

    Args:
        folder: A complete pipeline folder with its ``pretraining.json``.

    Raises:
        IveditError: The folder has no record, or lacks a part.
    """
    folder = Path(folder).resolve()
    record = read_record(folder)
    if not record:
        raise IveditError(f"{folder} has no pretraining.json, which the model card is written from")
    missing = [part for part in (*_PARTS, "model_index.json") if not (folder / part).exists()]
    if missing:
        raise IveditError(f"{folder} lacks {', '.join(missing)}: run the pretraining tasks first (docs/pretraining.md)")
    sections = [_opening(folder), _use(folder), _contents(folder), _training(record), _measured(record)]
    sections += [_choice(), _limits()]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _wrapped(*sentences: str, mark: str = "") -> list[str]:
    """One paragraph, or one point of a list with ``mark``, in lines of at most 120 characters."""
    return textwrap.wrap(
        mark + " ".join(sentences),
        120,
        subsequent_indent=" " * len(mark),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _opening(folder: Path) -> list[str]:
    return [
        "---",
        "license: apache-2.0",
        "library_name: diffusers",
        "pipeline_tag: text-to-video",
        "---",
        "<!-- Written by `python -m ivedit.pretrain.card FOLDER`; change what it is written from instead. -->",
        "",
        f"# {folder.name}: a toy text-to-video pipeline",
        "",
        *_wrapped(
            "A complete Wan 2.1 text-to-video pipeline at toy size, trained from nothing on procedural clips of",
            "moving shapes (17 frames, 64x64). It exists so that code for real Wan checkpoints can be run, tested and",
            "measured in minutes on a laptop: the classes, the folder layout and the VAE's factors (8x in space, 4x in",
            "time) are the real ones. It draws nothing but those shapes. Licence: Apache-2.0, weights included. No",
            "pictures or texts of anybody were used.",
        ),
    ]


def _use(folder: Path) -> list[str]:
    place = "ivedit/assets/wan-sprites" if folder == _SHIPPED else folder.name
    return [
        "## Use",
        "",
        "In plain diffusers, without ivedit:",
        "",
        "```python",
        "import torch",
        "from diffusers import WanPipeline",
        "",
        f'pipeline = WanPipeline.from_pretrained("{place}", torch_dtype=torch.float32)',
        'caption = "a large green star going up right quickly on a lavender and black striped background"',
        "size = dict(height=64, width=64, num_frames=17)",
        'clip = pipeline(caption, **size, num_inference_steps=50, output_type="pil").frames[0]',
        'clip[0].save("star.gif", save_all=True, append_images=clip[1:], duration=120, loop=0)',
        "```",
        "",
        "In ivedit it is `backbone.path=wan-sprites`, the default.",
    ]


def _files(folder: Path, part: str) -> list[Path]:
    path = folder / part
    return [path] if path.is_file() else sorted(path.rglob("*.safetensors"))


def _contents(folder: Path) -> list[str]:
    rows, total = [], 0
    for part, (_, what, kind) in _PARTS.items():
        files = _files(folder, part)
        count = sum(parameters(file) for file in files)
        total += count
        size = _megabytes(file.stat().st_size for file in files)
        rows.append(f"| {what} | `{part}` | {kind} | {count:,} | {size} |")
    whole = _megabytes(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f.name != CARD)
    transformer = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
    vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    text = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    own = json.loads((folder / "ivedit.json").read_text(encoding="utf-8"))
    return [
        "## Parts",
        "",
        "| part | in | class | weights | size |",
        "|---|---|---|---|---|",
        *rows,
        f"| all | | | {total:,} | {whole} |",
        "",
        "Weights are safetensors in half precision; the reader and `pretraining.json` are not read by diffusers.",
        "",
        *_wrapped(
            f"Text encoder: {text['num_layers']} layers, width {text['d_model']}; one token a word,",
            f"{text['vocab_size']} tokens. ivedit pads texts to {own['text_length']} tokens, `WanPipeline` to 512: the",
            "transformer was trained with both.",
            mark="- ",
        ),
        *_wrapped(
            f"VAE: {vae['scale_factor_spatial']}x in space (2x of it by patches), {vae['scale_factor_temporal']}x in",
            f"time, {vae['z_dim']} latent channels, {vae['base_dim']} channels at its first level: a clip of 17 frames",
            "is 5 latent frames of 8x8.",
            mark="- ",
        ),
        *_wrapped(
            f"Transformer: {transformer['num_layers']} blocks, {transformer['num_attention_heads']} heads of",
            f"{transformer['attention_head_dim']}, feed-forward width {transformer['ffn_dim']}, patch",
            f"{tuple(transformer['patch_size'])}.",
            mark="- ",
        ),
    ]


def _training(record: dict[str, Any]) -> list[str]:
    lines = [
        "## Training",
        "",
        *_wrapped(
            "On scenes of the split `pretrain` of `ivedit.sprites`, rendered on the fly: one to three objects (3% of",
            "the scenes are empty), every colour and shape, also the colour-shape pairs that editing experiments hold",
            "out; 12% in a style (grey, inverted, outline). How to repeat it: `docs/pretraining.md` in the repository.",
            "Time is of the whole task, making the data included.",
        ),
        "",
        "| part | piece | steps | time | device | torch | reached |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, what, _ in _PARTS.values():
        for number, piece in enumerate(record.get(task, []), 1):
            cells = (
                what.partition(" (")[0], number, f"{piece['steps']:,}", f"{piece['seconds']:.0f} s", _devices(piece),
                piece["torch"], _reached(piece),
            )  # fmt: skip
            lines.append(f"| {' | '.join(map(str, cells))} |")
    for task, what, _ in _PARTS.values():
        lines += ["", *_wrapped(f"**{what[0].upper()}{what[1:].partition(' (')[0]}.** {_TRAINED[task]}")]
        for number, piece in enumerate(record.get(task, []), 1):
            lines += ["", *_wrapped(f"Piece {number}: {_settings(task, number, piece)}.")]
    return lines


def _devices(piece: dict[str, Any]) -> str:
    count = piece.get("gpus", piece.get("settings", {}).get("train.devices", 1))
    return piece["device"] if count == 1 else f"{count} x {piece['device']}"


def _reached(piece: dict[str, Any]) -> str:
    values = {**piece.get("final", {}), **{name: piece[name] for name in ("psnr", "worst_frame_psnr") if name in piece}}
    shown = []
    for name, (what, unit) in _FINAL.items():
        if name in values:
            number = f"{values[name]:.1%}" if unit == "share" else f"{values[name]:.{2 if unit else 3}f} {unit}".strip()
            shown.append(f"{what}: {number}")
    return "; ".join(shown)


def _settings(task: str, number: int, piece: dict[str, Any]) -> str:
    """The settings of a piece: those on record, else those of the shipped experiment that has its steps and seed."""
    source, settings = "", piece.get("settings")
    if settings is None and number <= len(EXPERIMENTS[task]):
        from ivedit.config.compose import load

        name = EXPERIMENTS[task][number - 1]
        cfg = load(name)
        if (cfg.train.max_steps, cfg.seed) == (piece["steps"], piece["seed"]):
            source, settings = f"`experiment={name}`: ", settings_of(cfg)
    if settings is None:
        return f"seed {piece['seed']}; its other settings are not on record"
    listed = [f"`{key}={_shown(settings[key])}`" for key in SETTINGS[task] if key in settings]
    return source + ", ".join(listed)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _measured(record: dict[str, Any]) -> list[str]:
    lines = ["## What it reaches", ""]
    bars = record.get("bars")
    if bars is None:
        return lines + _wrapped(
            "Not measured since the last training piece (`python -m ivedit.pretrain.bars FOLDER --record` does it)."
        )
    missed = sum(bars[name] < least for name, (least, _) in BARS.items())
    lines += _wrapped(
        f"On {bars['prompts']} captions and {bars['edits']} edits of held-out scenes (seed {bars['seed']}),",
        "text-to-video through `WanPipeline` at its defaults (50 steps, guidance 5, 512 tokens), by",
        "`python -m ivedit.pretrain.bars`.",
        f"**{missed} of {len(BARS)} bars are missed.**" if missed else f"All {len(BARS)} bars are reached.",
    )
    lines += ["", "| what | value | bar | |", "|---|---|---|---|"]
    for name, (least, what) in BARS.items():
        value, bar = (f"{bars[name]:.1%}", f"{least:.0%}") if least < 1 else (f"{bars[name]:.2f}", f"{least:g}")
        lines.append(f"| {what} | {value} | {bar} | {'reached' if bars[name] >= least else '**missed**'} |")
    truth = bars["reader_on_true_clips"]
    shapes = sorted(bars["present_by_shape"].items(), key=lambda item: item[1])
    return [
        *lines,
        "",
        *_wrapped(
            f"The reader looks for {bars['objects']} objects and {bars['directions']} directions; on the true clips of",
            f"the same scenes it finds {truth['objects_present']:.1%} and {truth['directions_right']:.1%} of them.",
            f"Present by shape: {', '.join(f'{name} {value:.1%}' for name, value in shapes)}. With the true edit",
            f"noised to sigma 0.7 instead of 0.5, the edited region has {bars['ceiling_edited_psnr_at_0.7']:.2f} dB.",
        ),
    ]


def _choice() -> list[str]:
    return [
        "## A choice: later latent frames are near image codes",
        "",
        *_wrapped(
            "In a causal video VAE the first latent frame codes one image and each later one four frames, in a code of",
            "its own kind. Here a term of the VAE's loss (`pretrain.code_weight=0.02`) keeps each later latent frame",
            "near what the VAE makes of the last of its four frames alone, as an image. In a paired run it cost",
            "nothing: 35.58 dB with it, 35.57 dB without. The gap between a later latent frame of a still clip and the",
            "image's latent is 0.2% of the variance with it, 10% without. So what is learned from images has a",
            "shorter way to clips here than with a VAE trained without it; keep that in mind when carrying results",
            "over to Wan's own.",
        ),
    ]


def _limits() -> list[str]:
    return [
        "## Limits",
        "",
        "- Sprites only: any other word is one unknown token, and any other picture is far from its training data.",
        "- Made for 17 frames of 64x64; other sizes and lengths run, but were never trained.",
        "- Captions are read in the phrasings of `ivedit.sprites`; free wording is not understood.",
        "- Numbers reached here compare methods on this world. They do not predict quality on real video.",
    ]


def _megabytes(sizes: Iterable[int]) -> str:
    return f"{sum(sizes) / 1e6:.1f} MB"


def main(arguments: list[str] | None = None) -> int:
    """Write the card, or with ``--check`` say whether it is up to date (exit code 1 when not)."""
    parser = argparse.ArgumentParser(
        prog="python -m ivedit.pretrain.card", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("folder", help="pipeline folder, e.g. ivedit/assets/wan-sprites")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when the card is stale")
    options = parser.parse_args(arguments)
    file = Path(options.folder) / CARD
    try:
        text = card(options.folder)
    except IveditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.check:
        fresh = file.is_file() and file.read_text(encoding="utf-8") == text
        print(f"{file} is {'up to date' if fresh else 'stale'}")
        return 0 if fresh else 1
    file.write_text(text, encoding="utf-8")
    print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
