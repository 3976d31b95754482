"""Results as text: the tables of results.md, which read well in a terminal too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ivedit.evaluation.metrics import METRICS
from ivedit.evaluation.statistics import Estimate, few_clips
from ivedit.evaluation.summary import HEADLINE, in_order
from ivedit.runfolder import list_gpus

__all__ = ["cell_text", "format_table", "markdown_table", "metric_label", "table_rows"]

_COLUMNS = 5
"""Metrics beside each other in a terminal."""

OWN_ROW = "this run"
"""What a tracker's table calls the row of the run's own editor."""

_ARROWS = {"higher": "↑", "lower": "↓", "near 1": "→1"}


def format_table(results: Mapping[str, Any]) -> str:
    """All tables of a run's results as Markdown with aligned columns.

    Args:
        results: What `ivedit.evaluation.suite.evaluate` returned, or results.json.
    """
    parts = [
        _heading(results),
        _main(results),
        _paired(results),
        _others(results),
        _operations(results),
        _per_latent(results),
        _readback(results),
        *(_triage(results, name) for name in results.get("triage", {}).get("editors", {})),
        *(_gate(name, found) for name, found in results.get("gate", {}).items()),
        _footer(results),
    ]
    return "\n\n".join(part for part in parts if part)


def table_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One flat mapping per row of the main table, for a tracker's table, which shows many runs side by side.

    There the run's own row is called the same in every run, and what is compared first stands first.
    """
    rows: list[dict[str, Any]] = []
    for name, row in results["rows"].items():
        label = OWN_ROW if row["kind"] == "editor" and not rows else name  # the first editor is the run's own
        flat: dict[str, Any] = {"row": label, "success": row["metrics"]["success"]["mean"], "kind": row["kind"]}
        for metric, found in row["metrics"].items():
            flat[metric] = found["mean"]
            if metric in HEADLINE:
                flat |= {f"{metric}_low": found["low"], f"{metric}_high": found["high"]}
        flat["n"] = row["metrics"]["success"]["total"]
        rows.append(flat)
    return rows


def cell_text(name: str, found: Mapping[str, Any], *, interval: bool = True) -> str:
    """One estimate: success in per cent, others with their metric's decimals."""
    shown = Estimate(**found)
    digits, unit = METRICS.info(name)["digits"] if name in METRICS else 2, ""
    if name == "success":
        mean, low, high = (None if x is None else 100 * x for x in (shown.mean, shown.low, shown.high))
        shown, digits, unit = replace(shown, mean=mean, low=low, high=high), 0, "%"
    if not interval:
        shown = replace(shown, low=None, high=None)
    return shown.text(digits, unit)


def metric_label(name: str) -> str:
    """A metric's column title with the direction that is better."""
    info = METRICS.info(name)
    return f"{info['label']} {_ARROWS[info['better']]}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(head), rule, *(line(row) for row in rows)])


def _heading(results: Mapping[str, Any]) -> str:
    sampling, thresholds = results["sampling"], results["thresholds"]
    clips, few = results["clips"], few_clips([results["rows"], results["paired"]])
    kinds = len({clip["operation"] for clip in clips})
    return (
        f"# {results['name']}: {len(clips)} held-out clips\n\n"
        f"Split `{results['split']}`, {kinds} operations, {results['frames']} frames a clip; {sampling['steps']} "
        f"{sampling['scheduler']} steps, guidance {sampling['guidance']:g}.\nSuccess: edited region above "
        f"{thresholds['edited_db']:g} dB and kept region above {thresholds['kept_db']:g} dB over all frames. "
        "Brackets: 95% interval over clips." + (f"\n{few}" if few else "")
    )


def _main(results: Mapping[str, Any]) -> str:
    head = ["row", *(metric_label(name) for name in HEADLINE), "s/clip"]
    rows = [
        [name, *(cell_text(metric, row["metrics"][metric]) for metric in HEADLINE), f"{row['seconds_per_clip']:.2f}"]
        for name, row in results["rows"].items()
    ]
    return markdown_table(head, rows)


def _paired(results: Mapping[str, Any]) -> str:
    rows = []
    for name, controls in results["paired"].items():
        if results["rows"][name]["kind"] != "editor":
            continue
        for control, found in controls.items():
            edited = found["edited_psnr"]
            sure = "-" if edited["low"] is None else "yes" if edited["low"] > 0 else "no"
            decibels = (cell_text(metric, found[metric]) for metric in ("edited_psnr", "kept_psnr"))
            rows.append([f"{name} - {control}", *decibels, sure])
    if not rows:
        return ""
    head = ["paired by clip", "edited PSNR, dB", "kept PSNR, dB", "edits better, at 95%"]
    return "## Against the controls\n\n" + markdown_table(head, rows)


def _others(results: Mapping[str, Any]) -> str:
    names = [name for name in METRICS.names() if name not in HEADLINE]
    names = [name for name in names if all(name in row["metrics"] for row in results["rows"].values())]
    tables = []
    for start in range(0, len(names), _COLUMNS):
        shown = names[start : start + _COLUMNS]
        rows = [
            [name, *(cell_text(metric, row["metrics"][metric], interval=False) for metric in shown)]
            for name, row in results["rows"].items()
        ]
        tables.append(markdown_table(["row", *(metric_label(name) for name in shown)], rows))
    note = "n/N: clips with a value (no kept region left after the SSIM window; a source that stands still)."
    return "\n\n".join(["## Structure and motion", *tables, note])


def _operations(results: Mapping[str, Any]) -> str:
    rows = {name: row for name, row in results["rows"].items() if name not in ("source_copy", "still_clip")}
    groups = in_order(group for row in rows.values() for group in row["groups"])
    lines = []
    for group in groups:
        count = max(row["groups"][group]["success"]["total"] for row in rows.values() if group in row["groups"])
        label = "(needs new motion)" if group == "needs_motion" else group
        lines.append([label, str(count), *(_both(row["groups"].get(group)) for row in rows.values())])
    head = ["operation", "clips", *rows]
    return "## Success and edited PSNR per operation\n\n" + markdown_table(head, lines)


def _per_latent(results: Mapping[str, Any]) -> str:
    """Edited PSNR over a clip's latent frames: does an edit learned on images last?"""
    rows = {name: row["per_latent"] for name, row in results["rows"].items() if name != "source_copy"}
    count = max((len(values) for values in rows.values()), default=0)
    if count < 2:
        return ""
    lines = [[name, *("-" if v is None else f"{v:.1f}" for v in values)] for name, values in rows.items()]
    head = ["latent frame", *(str(index) for index in range(count))]
    return "## Edited PSNR over time, dB\n\n" + markdown_table(head, lines)


def _both(found: Mapping[str, Any] | None) -> str:
    """Success and edited PSNR without intervals; `-` where a set has no such clip."""
    if found is None:
        return "-"
    edited = found["edited_psnr"]["mean"]
    decibel = "-" if edited is None else f"{edited:.1f} dB"
    if "success" not in found:
        return decibel
    success = found["success"]["mean"]
    return f"{'-' if success is None else f'{100 * success:.0f}%'}  {decibel}"


def _readback(results: Mapping[str, Any]) -> str:
    read = {name: row["readback"] for name, row in results["rows"].items()}
    skipped = [found for found in read.values() if isinstance(found, str)]
    if skipped:
        return f"Read-back by the classifier: {skipped[0]}."
    facts = list(next(iter(read.values())))
    rows = [[name, *(cell_text("success", found[fact]) for fact in facts)] for name, found in read.items()]
    return "## Read back from the frames (share of frames)\n\n" + markdown_table(["row", *facts], rows)


def _triage(results: Mapping[str, Any], name: str) -> str:
    found, ceiling = results["triage"]["editors"][name], results["triage"]["ceiling"]
    sets = {
        "training pairs": found["training_pairs"],
        "held-out pairs": found["held_out_pairs"],
        "held-out clips": found["held_out_clips"],
        **{f"ceiling {sigma}": values for sigma, values in ceiling.items()},
        "one step": found["one_step"],
    }
    skipped = [f"{label}: {values['skipped']}" for label, values in sets.items() if "skipped" in values]
    sets = {label: values for label, values in sets.items() if "skipped" not in values}
    groups = in_order(group for values in sets.values() for group in values["operations"])
    lines = [
        ["clips or frames", *(str(values["n"]) for values in sets.values())],
        ["all", *(_both(values["all"]) for values in sets.values())],
    ]
    for group in groups:
        label = "(needs new motion)" if group == "needs_motion" else group
        lines.append([label, *(_both(values["operations"].get(group)) for values in sets.values())])
    head = ["operation", *sets]
    notes = [
        "Pairs: single frames. Ceiling: the true frame noised to that sigma, denoised by the frozen backbone.\n"
        "One step: the picture that the first look at noise (sigma 0.98) predicts.",
        *(f"Not scored: {reason}." for reason in skipped),
    ]
    gap = found["image_minus_video"]["all"]
    notes.append(f"Success on one frame minus success on the clip of the same scene: {cell_text('success', gap)}.")
    if "recolour_colour_error" in found["one_step"]:
        error = Estimate(**found["one_step"]["recolour_colour_error"]).text(3)
        notes.append(f"Mean-colour error of the one-step estimate, recolours: {error} (0 to 1.73).")
    return f"## Triage: {name}\n\n{markdown_table(head, lines)}\n\n" + "\n".join(notes)


def _gate(name: str, found: Mapping[str, Any]) -> str:
    if "skipped" in found:
        return f"Gate of {name}: {found['skipped']}."
    table = [
        [f"block {block}", *("-" if value is None else f"{value:.2f}" for value in row)]
        for block, row in zip(found["blocks"], found["table"], strict=True)
    ]
    auc, best = (Estimate(**found[key]).text(2) for key in ("auc", "ceiling"))
    head = ["AUC", *(f"sigma {sigma}" for sigma in found["sigmas"])]
    summary = f"Mean {auc}; 0.5 is blind, the true mask at token resolution scores {best}."
    return f"## Gate as a mask: {name}\n\n{markdown_table(head, table)}\n\n{summary}"


def _footer(results: Mapping[str, Any]) -> str:
    about = results["environment"]
    packages = ", ".join(
        f"{name} {about['packages'][name]}" for name in ("ivedit", "torch", "diffusers") if name in about["packages"]
    )
    editors = "; ".join(
        f"{name}: {facts['variant']}, {facts['trained_weights'] / 1e6:.2f}M weights"
        for name, facts in about["editors"].items()
    )
    seed, machine = results["sampling"]["seed"], ", ".join(list_gpus(about["gpus"])) or about["device"]
    lines = [
        f"Editors: {editors}." if editors else "",
        f"Backbone {about['backbone']} ({about['backbone_fingerprint'][:12]}); noise seed {seed}.",
        f"Made on {machine} with {packages}; {about['date']}; {results['seconds']:.0f} s.",
        "What each metric means: docs/metrics.md. Every value of every clip: results.json.",
    ]
    return "\n".join(line for line in lines if line)
