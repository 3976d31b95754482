"""The table of finished edits as Markdown and as rows: one line a metric, one column a method, the judge's beside ours.

Everything is made from evaluation.json, so the table can be made again from it.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ivedit.evaluation.manifest import CONTROL
from ivedit.evaluation.metrics import METRICS, MOVES_OTHERWISE
from ivedit.evaluation.statistics import Estimate, few_clips
from ivedit.evaluation.tables import cell_text, markdown_table, metric_label

__all__ = ["clip_rows", "clips_csv", "format_evaluation", "judge_label"]

_PAIRS = 6
"""Columns of paired differences shown; the others are in evaluation.json."""


def format_evaluation(results: Mapping[str, Any]) -> str:
    """All tables and the footer.

    Args:
        results: evaluation.json.
    """
    parts = [_heading(results), _scores(results), _differences(results), _operations(results), _notes(results),
             _preferences(results)]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def clip_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One flat mapping for each clip of each row: every value, judge-free and judged; None where there is none."""
    judged = results.get("judge") or {}
    found = []
    for row, content in results["rows"].items():
        scores = judged.get("per_clip", {}).get(row, {})
        for number, clip in enumerate(results["clips"]):
            about = {"clip": clip["id"], "row": row, "operation": clip["operation"], "mask": clip["mask"]}
            ours = {name: content["per_clip"][name][number] for name in results["columns"]}
            theirs = {f"judge.{name}": by_clip.get(clip["id"]) for name, by_clip in scores.items()}
            found.append(about | ours | theirs)
    return found


def clips_csv(results: Mapping[str, Any]) -> str:
    """`clip_rows` as CSV; an empty cell is no value."""
    rows = clip_rows(results)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def judge_label(judged: Mapping[str, Any], name: str) -> str:
    """A judge's metric with what its anchors showed, such as ``TC (not valid for this judge)``."""
    return str(judged.get("headings", {}).get(name, name))


# -- parts ---------------------------------------------------------------------------------------------------------


def _heading(results: Mapping[str, Any]) -> str:
    clips, methods = results["clips"], results["methods"]
    sizes = Counter(f"{clip['frames']} frames of {clip['height']}x{clip['width']}" for clip in clips)
    most, _ = sizes.most_common(1)[0]
    few = few_clips([results["rows"], results["paired"], results.get("judge")])
    few += "\n" if few else ""
    shown = most if len(sizes) == 1 else f"{len(sizes)} sizes, most often {most}"
    return (
        f"# {results['name']}: {len(clips)} clips, {len(methods)} method{'s' if len(methods) > 1 else ''}\n\n"
        f"{shown}. Brackets: 95% interval over clips; (n/N): clips with a value, where not all have one.\n"
        f"{few}"
        f"Success: edited region above {results['thresholds']['edited_db']:g} dB and kept region above "
        f"{results['thresholds']['kept_db']:g} dB over all frames."
    )


def _scores(results: Mapping[str, Any]) -> str:
    columns = list(results["rows"])
    lines = [
        [metric_label(name), *(cell_text(name, results["rows"][row]["metrics"][name]) for row in columns)]
        for name in results["columns"]
        if any(results["rows"][row]["metrics"][name]["n"] for row in columns)
    ]
    judged = results.get("judge") or {}
    for name in judged.get("metrics", ()):
        cells = [judged["rows"].get(row, {}).get(name) for row in columns]
        lines.append([f"judge: {judge_label(judged, name)} ↑", *("-" if c is None else _text(c, 2) for c in cells)])
    if "statuses" in judged:
        lines.append(["judgements with a score", *(_judged(judged["statuses"].get(row)) for row in columns)])
    return markdown_table(["metric", *columns], lines)


def _judged(statuses: Mapping[str, Mapping[str, int]] | None) -> str:
    if not statuses:
        return "-"
    return f"{sum(c['ok'] for c in statuses.values())}/{sum(sum(c.values()) for c in statuses.values())}"


def _differences(results: Mapping[str, Any]) -> str:
    pairs = [(a, b) for a, others in results["paired"].items() for b in others]
    pairs.sort(key=lambda pair: pair[1] == CONTROL)  # methods with each other first
    shown = pairs[:_PAIRS]
    judged = results.get("judge") or {}
    lines = []
    for name in results["columns"]:
        found = [results["paired"][a][b][name] for a, b in shown]
        if any(cell["n"] for cell in found):
            lines.append([metric_label(name), *(_sure(name, cell) for cell in found)])
    for name in judged.get("metrics", ()):
        cells = [judged.get("paired", {}).get(a, {}).get(b, {}).get(name) for a, b in shown]
        label = f"judge: {judge_label(judged, name)} ↑"
        lines.append([label, *("-" if cell is None else _starred(_text(cell, 2), cell) for cell in cells)])
    if not lines:
        return ""
    more = f" {len(pairs) - len(shown)} more pairs are in evaluation.json." if len(pairs) > len(shown) else ""
    note = f"\n\n\\*: the 95% interval leaves out 0 (not corrected for the number of comparisons).{more}"
    head = ["paired by clip", *(f"{a} - {b}" for a, b in shown)]
    return "## Differences\n\n" + markdown_table(head, lines) + note


def _operations(results: Mapping[str, Any]) -> str:
    rows = {name: row for name, row in results["rows"].items() if row["groups"] and name != CONTROL}
    groups = list(dict.fromkeys(group for row in rows.values() for group in row["groups"]))
    lines = []
    for group in groups:
        count = max(row["groups"][group]["success"]["total"] for row in rows.values())
        cells = []
        for row in rows.values():
            found = row["groups"][group]
            cells.append("  ".join(cell_text(name, found[name], interval=False) for name in ("success", "edited_psnr")))
        lines.append([group, str(count), *cells])
    if not lines:
        return ""
    return "## Success and edited PSNR per operation\n\n" + markdown_table(["operation", "clips", *rows], lines)


def _preferences(results: Mapping[str, Any]) -> str:
    """What the judge said of two edits at a time."""
    text = results.get("judge_markdown")
    return f"## Which of two edits is better\n\n{text}" if text else ""


def _notes(results: Mapping[str, Any]) -> str:
    return "\n".join(f"- {line}" for line in _note_lines(results))


def _clips(count: int) -> str:
    return f"{count} clip" + ("s" if count != 1 else "")


def _note_lines(results: Mapping[str, Any]) -> Iterator[str]:
    clips = results["clips"]
    masks = Counter(clip["mask"] for clip in clips)
    yield "Masks: " + ", ".join(f"{count} {name}" for name, count in masks.items()) + "." + (
        " An estimated mask is where at least half of the methods changed the source: what a method spoils there "
        "counts as edited, not as damage." if masks["estimated"] else ""
    )
    truths = sum(clip["truth"] for clip in clips)
    if truths < len(clips):
        yield (
            f"{len(clips) - truths} of {len(clips)} clips have no true edit: there edited PSNR, edited SSIM, "
            "edit progress and success have no value, the kept region is compared with the source, sharpness too."
        )
    fitted = sum(clip["fitted"] for clip in clips)
    if fitted:
        yield f"{fitted} sources, truths or masks were cut or scaled to the edits' length and size (--fit)."
    for row, content in results["rows"].items():
        flagged = content["moves_otherwise"]
        if flagged and row != CONTROL:
            ids = [clips[i]["id"] for i in flagged]
            some = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
            known = [i for i in flagged if clips[i]["truth"]]
            asked = sum(clips[i]["truth_moves_otherwise"] for i in known)
            truth = f"; the true edit does so in {asked} of {_clips(len(known))} that have one" if known else ""
            yield (
                f"Flagged: {row} moves otherwise than the source in {_clips(len(ids))} (motion agreement below "
                f"{MOVES_OTHERWISE}{truth}): a fault, unless the instruction asks for it; then warp error does not "
                f"count: {some}."
            )
    reasons: dict[str, list[str]] = {}
    for name, reason in results["skipped"].items():
        reasons.setdefault(reason, []).append(METRICS.info(name)["label"] if name in METRICS else name)
    for reason, labels in reasons.items():
        yield f"{', '.join(labels)}: {reason}."
    yield from _power(results)
    for name, digest in results.get("weights", {}).items():
        yield f"Weights of {name}: sha256 {digest[:16]}."
    judged = results.get("judge") or {}
    if "refused" in judged:
        yield f"Judge: no scores are shown. {judged['refused']}"
    yield from judged.get("footer", ())
    about = results.get("environment")
    if about:
        packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
        yield f"Measured on {about['device']} with {packages}; {about['date']}; {results['seconds']:.0f} s."


def _power(results: Mapping[str, Any]) -> Iterator[str]:
    """What these clips could have detected between the first two methods."""
    methods = results["methods"]
    if len(methods) < 2:
        return
    found = results["detectable"][methods[0]][methods[1]]
    named = [f"{METRICS.info(n)['label']} {found[n]:.{METRICS.info(n)['digits']}f}"
             for n in ("edited_psnr", "kept_psnr", "warp_error") if found.get(n)]  # fmt: skip
    if named:
        yield (f"Smallest difference of {methods[0]} and {methods[1]} that these clips find in 80% of runs: "
               + ", ".join(named) + ".")  # fmt: skip


# -- cells ---------------------------------------------------------------------------------------------------------


def _sure(name: str, found: Mapping[str, Any]) -> str:
    return _starred(cell_text(name, found), found)


def _starred(text: str, found: Mapping[str, Any]) -> str:
    low, high = found["low"], found["high"]
    return f"{text} \\*" if low is not None and (low > 0 or high < 0) else text


def _text(found: Mapping[str, Any], digits: int, unit: str = "") -> str:
    return Estimate(**found).text(digits, unit)
