"""The tables of `wan.py`, from its JSON, and what follows from its windows."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["PAIRS", "overhead", "tables"]

PAIRS = 65_000
"""13,000 pairs, five epochs: the paper's schedule."""


def overhead(framework: Sequence[float], bare: Sequence[float], window: int, size: int) -> dict[str, Any]:
    """What the framework costs.

    Args:
        framework: seconds of each of its windows.
        bare: seconds of the bare ones around them, one more.
        window: steps of a window.
        size: pairs of a step.

    Returns:
        ``overhead`` (0.01: 1%), the median over the windows; ``overhead_of_windows``; paces of both.
    """
    around = [(before + behind) / 2 for before, behind in itertools.pairwise(bare)]
    ratios = [ours / other - 1 for ours, other in zip(framework, around, strict=True)]
    seconds = {"bare": bare, "framework": framework}
    return {
        "batch": size,
        "windows_steps_per_second": {arm: [window / each for each in values] for arm, values in seconds.items()},
        "pairs_per_second": {arm: size * window * len(values) / sum(values) for arm, values in seconds.items()},
        "overhead": statistics.median(ratios),
        "overhead_of_windows": ratios,
    }


def tables(report: dict[str, Any]) -> str:
    """Markdown."""
    lines = [f"{report['device']}, random weights, {report['size']}; ceiling {report['ceiling_tflops']} TFLOP/s", ""]
    part = report.get("training", {})
    rows = [*part.get("rows", []), *(row for row in [report.get("large", {})] if "batch" in row)]
    if rows:
        lines += ["| editor | trained weights | batch | pairs/s | TFLOP a pair | of the ceiling | peak GB |",
                  "|---|---|---|---|---|---|---|"]  # fmt: skip
        for row in rows:
            found = ["does not fit", f"{row['tflop_per_pair']:.1f}", "", ""]
            if row.get("pairs_per_second"):
                pace, share = f"{row['pairs_per_second']:.1f}", f"{row['share_of_ceiling']:.0%}"
                found = [pace, f"{row['tflop_per_pair']:.1f}", share, str(row["peak_gb"])]
            cells = [row["editor"], f"{row['trained_weights'] / 1e6:.1f}M", str(row["batch"]), *found]
            lines.append(f"| {' | '.join(cells)} |")
        if "ratio" in part:
            lines += ["", f"ours / side by side: {part['ratio']:.2f} (counted: {part['ratio_counted']:.2f})"]
        if "steady" in part:
            lines += ["", *_overhead_lines(part["steady"], schedule=True)]
    part = report.get("sampling", {})
    if "rows" in part:
        lines += ["", f"| {part['frames']} frames | ms a step | TFLOP | reading the source, ms |", "|---|---|---|---|"]
        lines += [f"| {row['row']} | {1000 * row['seconds']:.0f} | {row['tflop']:.0f} | "
                  f"{1000 * row['source_seconds']:.0f} |" for row in part["rows"]]  # fmt: skip
        lines += [
            "",
            f"ours / frozen: {part['to_frozen']:.3f} (counted: {part['to_frozen_counted']:.3f}); "
            f"side by side / ours: {part['faster_than_side_by_side']:.2f} (counted: {part['faster_counted']:.2f})",
        ]
    part = report.get("sprites", {})
    if "overhead" in part:
        lines += ["", "sprites:", *_overhead_lines(part, schedule=False)]
    return "\n".join(lines)


def _overhead_lines(part: dict[str, Any], *, schedule: bool) -> list[str]:
    pace = part["pairs_per_second"]
    lines = [
        f"batch {part['batch']}: framework {pace['framework']:.2f} pairs/s, bare loop {pace['bare']:.2f}: "
        f"overhead {part['overhead']:.1%}" + _spread(part.get("overhead_of_windows", []))
    ]
    if schedule:
        count = len(part["windows_steps_per_second"]["framework"])
        lines.append(f"{PAIRS:,} pairs at that pace ({count} windows): {part['paper_schedule_minutes']:.1f} minutes")
    return lines


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    low, _, high = statistics.quantiles(values, n=4)
    return f" (median of {len(values)} windows; half of them {low:.1%} to {high:.1%})"
