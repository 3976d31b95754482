"""The model card of an exported editor, made from the run's own record alone."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

import ivedit
from ivedit.evaluation.statistics import few_clips
from ivedit.evaluation.summary import HEADLINE
from ivedit.evaluation.tables import cell_text, markdown_table, metric_label
from ivedit.exporting.record import MARK, Record
from ivedit.runfolder import list_gpus

__all__ = ["card"]

_TAGS = ["ivedit", "video-editing", "instruction-based-editing", "image-pairs", "wan"]
_ROWS = {
    "source_copy": "the source, unedited", "still_clip": "the edited first frame, standing still",
    "frozen": "the frozen backbone alone", "vae_ceiling": "the true edit through the VAE",
}  # fmt: skip


def card(
    record: Record, *, name: str, hub: str | None, base_model: str | None, license: str | None, weights: int,
    files: Mapping[str, int], dtype: str, difference: Mapping[str, Any] | None, strips: Sequence[str],
) -> str:  # fmt: skip
    """The text of README.md.

    Args:
        record: what is known about the editor.
        name: its title.
        hub: USER/NAME where it is to be loaded from; None: the folder.
        base_model: hub name of the backbone; None: not known, or not on a hub.
        license: SPDX identifier in lower case, or None.
        weights: number of trained weights.
        files: {file: bytes} of the weights.
        dtype: in which they are stored.
        difference: from `velocity_difference`; None: float32, or not measured.
        strips: pictures, relative to the card.
    """
    sections = [
        _header(base_model, license),
        [MARK, "", f"# {name}", "", *_what(record, weights, base_model)],
        _use(record, hub or name, base_model),
        _results(record),
        _samples(strips),
        _training(record),
        _files(files, weights, dtype, difference),
        _limits(record),
        _reconstruction(),
        _provenance(record, license),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _wrap(*sentences: str, mark: str = "") -> list[str]:
    return textwrap.wrap(
        mark + " ".join(sentences), 120, subsequent_indent=" " * len(mark), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _header(base_model: str | None, license: str | None) -> list[str]:
    fields: dict[str, Any] = {"license": license} if license else {}
    if base_model:
        fields |= {"base_model": base_model, "base_model_relation": "adapter"}
    fields |= {"library_name": "ivedit", "pipeline_tag": "video-to-video", "tags": _TAGS}
    return ["---", yaml.safe_dump(fields, sort_keys=False).rstrip(), "---"]


def _backbone(record: Record, base_model: str | None) -> str:
    if base_model:
        return f"[{base_model}](https://huggingface.co/{base_model})"
    if record.backbone == "wan-sprites":
        return "`wan-sprites`, the toy pipeline that ships with ivedit"
    return "a Wan text-to-video pipeline that was a local folder"


def _what(record: Record, weights: int, base_model: str | None) -> list[str]:
    editor = record.config["editor"]
    share = "every block" if editor["every"] == 1 else f"every {editor['every']}th block"
    return _wrap(
        f"Edit modules for {_backbone(record, base_model)}, which stays frozen: with them it edits a video as an",
        f"instruction says. {_count(weights)} trained weights (`{editor['variant']}`, {_width(record)}, beside",
        f"{share}); they hold no part of the backbone, which is loaded on its own.",
        "Learned from pairs of single images;",
        "motion comes from the source and the frozen transformer.",
    )


def _width(record: Record) -> str:
    editor = record.config["editor"]
    if editor["variant"] == "side_by_side":
        return f"rank {editor['rank']}"
    return f"width {editor['width'] or record.header['shapes']['width']}"  # null: the backbone's own


def _use(record: Record, place: str, base_model: str | None) -> list[str]:
    backbone = base_model or ("wan-sprites" if record.backbone == "wan-sprites" else "PATH_OF_THE_BACKBONE")
    words = "say what to change"
    if record.sprites:
        seen = [clip["instruction"] for clip in (record.results or {}).get("clips", [])]
        words = min(seen, key=len, default="make the red circle blue")
    # The header of the weights names the backbone, where it has a name.
    named = "" if base_model or record.backbone == "wan-sprites" else f" --backbone {backbone}"
    device = "" if backbone == "wan-sprites" else ', device="cuda"'
    extra = []
    if backbone != "wan-sprites":
        extra = [
            "", *_wrap(
                "`offload=True` keeps text encoder, transformer and VAE on the GPU only while each is used;",
                "`vae_tiling=True` is for large frames.",
            )
        ]  # fmt: skip
    return [
        "## Use",
        "",
        "```python",
        "from ivedit.pipeline import IVEditPipeline",
        "",
        f'pipe = IVEditPipeline.from_pretrained("{backbone}", editor="{place}"{device})',
        f'done = pipe.edit_video("clip.mp4", "{words}", "edited.mp4")',
        'print(*done.notes, sep="\\n")',
        "```",
        "",
        "or, on a command line:",
        "",
        "```",
        f'python -m ivedit.edit clip.mp4 "{words}" --editor {place}{named}',
        "```",
        "",
        *_wrap(
            "`scale=` multiplies what the modules add: 0 is the frozen backbone, 1 the",
            "editor as trained. Size, steps and",
            "guidance are by default those of the training run's evaluation; the",
            "clip's size, rate, length and sound are",
            "kept.",
        ),
        *extra,
    ]


def _results(record: Record) -> list[str]:
    found = record.results
    if found is None:
        return ["## Results", "", *_wrap(
            "**Not evaluated.** The record of this editor holds no evaluation:",
            "nothing is known about how well it edits."
        )]  # fmt: skip
    rows = {name: row for name, row in found["rows"].items() if row["kind"] == "editor" or name in _ROWS}
    own = next(name for name, row in rows.items() if row["kind"] == "editor")
    shown = [metric for metric in HEADLINE if all(metric in row["metrics"] for row in rows.values())]
    table = [
        [_row(name, own), *(cell_text(m, row["metrics"][m]) for m in shown)]
        for name, row in rows.items()
    ]
    sampling, limits, count = found["sampling"], found["thresholds"], len(found["clips"])
    kinds = sorted({clip["operation"] for clip in found["clips"]})
    # A run is evaluated on sprites, whatever it was trained on.
    world = "" if record.sprites else " of the procedural sprite world, not of its training data"
    return [
        "## Results",
        "",
        *_wrap(
            f"{count} held-out clips (split `{found['split']}`{world}) of {found['frames']} frames (kinds of edit:",
            f"{', '.join(kinds)}); {sampling['steps']} {sampling['scheduler']} steps,",
            f"guidance {sampling['guidance']:g}.",
            f"Success: edited region above {limits['edited_db']:g} dB and kept region",
            f"above {limits['kept_db']:g} dB over",
            "all frames, against the true edit. Brackets: 95% interval over clips. One training seed.",
            *([few] if (few := few_clips(rows)) else []),
        ),
        "",
        markdown_table(["row", *(metric_label(name) for name in shown)], table),
    ]


def _row(name: str, own: str) -> str:
    return "**this editor**" if name == own else _ROWS.get(name, f"another editor, `{name}`")


def _samples(strips: Sequence[str]) -> list[str]:
    if not strips:
        return []
    pictures = [f"![{path.rpartition('/')[2].removesuffix('.png')}]({path})" for path in strips]
    return ["## Samples", "", "Held-out clips over time, as the evaluation drew them; not chosen by hand.", "",
            "\n\n".join(pictures)]  # fmt: skip


def _training(record: Record) -> list[str]:
    config, extra = record.config, record.header["extra"]
    train, data, text = (config.get(name) or {} for name in ("train", "data", "text"))
    rows = [("steps", f"{extra['step']:,}")] if "step" in extra else []
    if train:
        shares = [train.get(key, 1) for key in ("batch_size", "accumulate", "devices", "nodes")]
        rows += [("pairs a step", " x ".join(map(str, shares)))] if not all(isinstance(n, int) for n in shares) else [
            ("pairs a step", str(math.prod(shares)))
        ]
        rows += [("optimiser", f"{train.get('optimizer', 'adamw')}, learning rate {train['lr']:g}")]
        rows += [("averaged weights", f"decay {train['ema']:g}")] if train.get("ema") else []
    if data:
        reader = "`sprites`, a procedural world rendered on the fly" if record.sprites else f"`{data.get('reader')}`"
        # A folder may hold fewer than were asked for; only the editor's file knows.
        pairs, most = extra.get("pairs"), "" if record.sprites else "at most "
        told = f"{pairs:,}" if pairs else f"{most}{data['pairs']:,}" if data.get("pairs") else None
        rows += [("data", f"{reader}, {told} pairs" if told else reader)]
        rows += [("kinds of edit", ", ".join(data["operations"]))] if record.sprites and data.get("operations") else []
        sizes = data.get("buckets") or [f"{data['height']}x{data['width']}"]
        rows += [("height x width of an image", ", ".join(sizes))]
    rows += [("read by the target stream", text["target"])] if text else []
    rows += [("seed", str(config["seed"]))] if config.get("seed") is not None else []
    about = record.environment
    machine = ", ".join(list_gpus(about.get("gpus") or [])) or about.get("cpu")
    rows += [("trained on", machine)] if machine else []
    table = markdown_table(["", ""], [[name, str(value)] for name, value in rows])
    return ["## Training", "", *_wrap(_experiment(config)), "", table, "",
            "Every setting: `config.yaml`."]  # fmt: skip


def _experiment(config: Mapping[str, Any]) -> str:
    name, summary = config.get("name"), config.get("summary")
    return (f"Experiment `{name}`" if name else "") + (f": {summary}" if name and summary else "")


def _files(files: Mapping[str, int], weights: int, dtype: str, difference: Mapping[str, Any] | None) -> list[str]:
    size = sum(files.values())
    parts = f"{len(files)} files, " if len(files) > 1 else ""
    lines = _wrap(
        f"{_count(weights)} weights in {dtype}, {parts}{size / 1e6:,.1f} MB of",
        "safetensors; no pickles, no code to run.",
        "The header of the file holds the settings of the modules, the backbone's",
        "fingerprint and where they come from.",
    )
    if dtype == "float32":
        return ["## Files", "", *lines]
    if difference is None:
        note = ["How much the rounding changes was not measured."]
    else:
        edit = "" if difference["of_edit"] is None else f", {difference['of_edit']:.2%} of what the modules add"
        height, width = difference["size"]
        note = [
            f"Measured against float32: one predicted velocity ({difference['frames']}",
            f"latent frames of {height}x{width},",
            f"noise level {difference['sigma']:g}, random latents and words) moves by",
            f"{difference['relative']:.3%} of its",
            f"length{edit}.",
        ]
    return ["## Files", "", *lines, "", *_wrap("The weights were rounded to bfloat16.", *note)]


def _limits(record: Record) -> list[str]:
    lines = ["## Limits", "", *_wrap(
        "Edits that need new motion are not learned: the pairs are single images, so nothing shows how an added thing",
        "should move.", mark="- ",
    )]  # fmt: skip
    if record.backbone == "wan-sprites":
        lines += _wrap(
            "The backbone draws simple moving shapes at 64x64 and knows no other",
            "pictures or words. Numbers reached here",
            "compare methods on that world; they do not predict quality on real video.", mark="- ",
        )  # fmt: skip
    lines += _wrap(
        "It works on the backbone that it was trained on; other weights of the same",
        "shapes are refused unless asked for.",
        mark="- ",
    )
    return lines + _wrap(
        "Clips longer than a window are edited in windows that are cross-faded: an edit may change between them.",
        mark="- ",
    )


def _reconstruction() -> list[str]:
    return ["## What this is not", "", *_wrap(
        "ivedit is a reconstruction of ImVideoEdit ([arXiv",
        "2604.07958](https://arxiv.org/abs/2604.07958)), written from",
        "its abstract and public summaries. These are not the authors' weights, and no number here is the paper's.",
    )]  # fmt: skip


def _provenance(record: Record, license: str | None) -> list[str]:
    header, about = record.header, record.environment
    packages = about.get("packages") or {}
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "diffusers", "lightning") if name in packages)
    commit, changed = about.get("git_commit"), " with changes" if about.get("git_changed") else ""
    rows = [
        ["editor format", str(header["format"])],
        ["backbone fingerprint", f"`{header['fingerprint']}`" if header["fingerprint"] else "not recorded"],
        ["configuration hash", f"`{record.config_hash}`" if record.config_hash else "not recorded"],
        ["git commit", f"`{commit}`{changed}" if commit else "not recorded"],
        ["trained with", versions or "not recorded"],
        ["exported with", f"ivedit {ivedit.__version__}"],
        ["licence", license or "not given: ask the owner before use"],
    ]
    return ["## Provenance", "", markdown_table(["", ""], rows)]


def _count(weights: int) -> str:
    for size, unit in ((1e9, "billion"), (1e6, "million")):
        if weights >= size:
            return f"{weights / size:.2f} {unit}"
    return f"{weights:,}"
