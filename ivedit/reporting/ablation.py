"""The report of an ablation sweep: arms and controls, paired differences and claims, in words, numbers and pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ivedit.config.fields import show
from ivedit.evaluation.hierarchical import COVERAGE, PLAIN_COVERAGE, SeedEstimate
from ivedit.evaluation.statistics import Estimate
from ivedit.reporting.analysis import ALPHA, Analysis, ArmRow, Difference, analyse
from ivedit.reporting.figures import difference_plot, profile_plot, seed_plot
from ivedit.reporting.layout import Cells, Report
from ivedit.reporting.run_table import duration, machine_of, sampling_of
from ivedit.reporting.strips import format_strips
from ivedit.reporting.sweep_record import METRICS

__all__ = ["ablation_report"]

_UNITS = {"success": "points", "edited_psnr": "dB", "kept_psnr": "dB"}
_NAMES = {"success": "success", "edited_psnr": "edited region", "kept_psnr": "kept region"}


def ablation_report(record: Mapping[str, Any], folders: Mapping[str, Mapping[int, Path]] | None = None) -> Report:
    """The report of a sweep's record.

    Args:
        record: From `ivedit.reporting.sweep_record`.
        folders: ``{arm: {seed: run folder}}``, for the frames; None when only the record is at hand.
    """
    found = analyse(record)
    figures = {"arms": seed_plot(found), **({"differences": difference_plot(found)} if found.differences else {})}
    shown = [replace(table, figure=plot) for table, plot in zip(tables(record, found), figures.values(), strict=True)]
    profile = profile_plot(record, found)
    return Report(
        name=record["name"],
        heading=tuple(heading(record, found)),
        tables=tuple(shown),
        notes=tuple(notes(record, found)),
        csv=format_csv(found),
        extras=(
            ("How much of the clips is how good", profile),
            ("The same clips in all arms", format_strips([arm.name for arm in found.arms], folders or {})),
        ),
        plots=(*figures.items(), ("profile", profile)),
    )


def tables(record: Mapping[str, Any], found: Analysis) -> list[Cells]:
    """Arms with the controls below, and the paired differences where there are any."""
    tuned = any(arm.tuned for arm in found.arms)
    head: tuple[str, ...] = (
        "arm", "success ↑", "edited region, dB ↑", "kept region, dB ↑", "edited, middle half ↑", "seeds", "n/N",
        "trained weights", "FLOPs, training step", "FLOPs, sampling step", "steps", "training",
    )  # fmt: skip
    rows = [(*_arm_cells(arm), *((_tuned(arm),) if tuned else ())) for arm in found.arms]
    for name, values in found.controls.items():
        n = values["success"]
        cells = (name, *(_shown(m, values[m]) for m in METRICS), "-", "-", f"{n.n}/{n.total}")
        rows.append((*cells, *("-" for _ in range(len(head) + tuned - len(cells)))))
    title, below = "Arms, and the controls below", frozenset(found.controls)
    made = [Cells(title, (*head, *(("tuned",) if tuned else ())), tuple(rows), below)]
    if found.differences:
        family = f"p (Holm, {len(found.differences)})"
        head = (
            "paired difference", "success, points", "edited region, dB", "kept region, dB", "P(better)", family,
            "detectable", "seeds", "claim" if found.declared else "first arm is better",
        )  # fmt: skip
        rows = [_difference_cells(difference) for difference in found.differences]
        title = "The claims, as declared before the runs" if found.declared else "The first arm against each other"
        made.append(Cells(title, head, tuple(rows)))
    return made


def heading(record: Mapping[str, Any], found: Analysis) -> list[str]:
    """What was measured, in sentences; whether the sweep is still running comes first."""
    limits = record["thresholds"]
    measured = [run for run in record["runs"] if "values" in run]
    sampling = sorted({sampling_of(run) for run in measured})
    lines = [record["summary"]] if record["summary"] else []
    if found.running:
        lines.append(
            f"**Still running: {record['ended']} of {record['expected']} runs have ended.** "
            "Means and intervals are of these; every claim is open."
        )
    many = len({run["seed"] for run in measured}) > 1
    seeds = ", ".join(str(seed) for seed in sorted({run["seed"] for run in measured}))
    lines.append(
        f"{record['clips']} held-out videos (split `{record['split']}`, {len(record['operations'])} operations, "
        f"{record['frames']} frames each), "
        f"{sampling[0] if len(sampling) == 1 else 'sampled as each arm asks'}. Success: edited region above "
        f"{limits['edited_db']:g} dB and kept region above {limits['kept_db']:g} dB over all frames. Means over "
        f"{'training seeds ' + seeds + ' and' if many else 'the'} clips; brackets: 95% interval over "
        f"{'other seeds and other clips' if many else 'other clips only, as there is one training seed, ' + seeds}. "
        "n/N: clips with a value."
    )
    tuning = record["tuning"]
    if tuning:
        what = ", ".join(f"`{key}` of {', '.join(map(str, values))}" for key, values in tuning["space"].items())
        lines.append(
            f"Each arm has its own best {what}, chosen by the same budget ({tuning['runs']} runs, seeds "
            f"{', '.join(map(str, tuning['seeds']))}, {', '.join(f'`{s}`' for s in tuning['settings'])}, "
            f"{tuning['objective']}) before any test clip was opened."
        )
    return lines


def notes(record: Mapping[str, Any], found: Analysis) -> list[str]:
    """What the numbers are and rest on, generated from the record."""
    lines = [
        "Interval: the wider of the hierarchical bootstrap (seeds, then clips; scaled to unbiased variances, widened "
        "to Student's t) and t over seeds. In simulations with 3, 5 and 8 seeds of 240 clips it covers "
        f"{100 * COVERAGE[0]:.1f} to {100 * COVERAGE[1]:.1f}%; the plain bootstrap went down to "
        f"{100 * PLAIN_COVERAGE[0]:.0f}%, t over seeds alone to {100 * PLAIN_COVERAGE[1]:.0f}%, hence the widening.",
    ]
    if found.differences:
        failed = sum(d.verdict.startswith("FAILED") for d in found.differences)
        lines.append(
            "Paired differences: same seeds, same clips. P(better): probability that a run of the first beats one of "
            "the second on a clip, ties half, with its bootstrap interval. A claim holds when its interval lies above "
            f"0 and its p, adjusted over the family of {len(found.differences)} (Holm), is at most {ALPHA:g}; "
            f"{sum(d.holds for d in found.differences)} hold, {failed} failed."
        )
        lines.append(
            "Detectable: the true difference that this many seeds and clips would have found in about 80% of sweeps; a "
            "failed claim says nothing about smaller ones."
        )
    if any("training_step" in arm.flops for arm in found.arms):
        lines.append(
            "FLOPs: counted by PyTorch on the real code (a multiply-add is two), without VAE and text encoder, which "
            "run once per image and text; a training step holds all its pairs, forward and backward; a sampling step "
            "is of one clip, its source read before."
        )
    skipped: dict[str, list[str]] = {}
    for arm in found.arms:
        if "skipped" in arm.flops:
            skipped.setdefault(arm.flops["skipped"], []).append(arm.name)
    lines += [f"FLOPs {reason}: {', '.join(arms)}." for reason, arms in skipped.items()]
    lines += [
        f"{run['arm']}, seed {run['seed']}: {run['state'].lower()}{': ' + run['reason'] if run['reason'] else ''}."
        for run in record["runs"]
        if "values" not in run and run["state"] not in ("WAITING", "RUNNING")
    ]
    empty = [name for name in record["arms"] if name not in {arm.name for arm in found.arms}]
    if empty:
        lines.append(f"No result yet: {', '.join(empty)}.")
    return [*lines, _provenance(record)]


def format_csv(found: Analysis) -> str:
    """One line per number of the report: arms, controls and differences, each metric, unrounded."""
    columns = (
        "kind", "name", "than", "metric", "mean", "low", "high", "clips", "clips_total", "seeds", "seed_means", "p",
        "p_holm", "improvement", "improvement_low", "improvement_high", "detectable", "claim", "trained_weights",
        "flops_training_step", "flops_sampling_step", "steps", "training_seconds",
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for arm in found.arms:
        facts = {
            "seeds": _numbers(arm.seeds), "trained_weights": arm.trained_weights, "steps": arm.steps,
            "training_seconds": arm.seconds, "flops_training_step": arm.flops.get("training_step"),
            "flops_sampling_step": arm.flops.get("sampling_step"),
        }  # fmt: skip
        every: dict[str, Estimate] = {**arm.values, "edited_psnr_middle_half": arm.middle}
        facts |= {"p": None, "detectable": None}  # against 0, which no mean is compared with
        rows += [{"kind": "arm", "name": arm.name, **_csv(m, e), **facts} for m, e in every.items()]
    for name, values in found.controls.items():
        rows += [{"kind": "control", "name": name, **_csv(metric, e)} for metric, e in values.items()]
    for d in found.differences:
        for metric, estimate in d.values.items():
            row: dict[str, Any] = {"kind": "difference", "name": d.better, "than": d.than, "seeds": _numbers(d.seeds)}
            row |= _csv(metric, estimate)
            if metric == d.metric and d.improvement:
                row |= {"p_holm": d.adjusted, "claim": d.verdict, "improvement": d.improvement.mean}
                row |= {"improvement_low": d.improvement.low, "improvement_high": d.improvement.high}
            rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows([{k: "" if v is None else v for k, v in row.items()} for row in rows])
    return text.getvalue()


# -- cells -------------------------------------------------------------------------------------------------------


def _arm_cells(arm: ArmRow) -> tuple[str, ...]:
    n = arm.values["success"]
    weights, flops = arm.trained_weights, arm.flops
    return (
        arm.name,
        *(_shown(metric, arm.values[metric]) for metric in METRICS),
        _shown("edited_psnr", arm.middle),
        str(len(arm.seeds)) if len(arm.seeds) == arm.expected else f"{len(arm.seeds)} of {arm.expected}",
        f"{n.n}/{n.total}",
        "-" if weights is None else f"{weights / 1e6:.2f}M",
        _giga(flops.get("training_step")),
        _giga(flops.get("sampling_step")),
        "-" if arm.steps is None else f"{arm.steps:,}",
        "-" if arm.seconds is None else duration(arm.seconds),
    )


def _tuned(arm: ArmRow) -> str:
    return ", ".join(f"{key}={show(value)}" for key, value in arm.tuned.items())


def _difference_cells(d: Difference) -> tuple[str, ...]:
    own = d.values.get(d.metric)
    could = None if own is None or own.detectable is None else own.detectable * (100 if d.metric == "success" else 1)
    return (
        f"{d.better} - {d.than}",
        *(_shown(metric, d.values[metric], unit="") if d.values else "-" for metric in METRICS),
        "-" if d.improvement is None else d.improvement.text(2),
        "-" if d.adjusted is None else ("<0.001" if d.adjusted < 0.001 else f"{d.adjusted:.3f}"),
        "-" if could is None else f"{could:.1f} {_UNITS[d.metric]}",
        str(len(d.seeds)),
        f"{_NAMES[d.metric]}: {d.verdict}",
    )


def _shown(metric: str, estimate: Estimate, unit: str = "%") -> str:
    """Success in per cent (differences of it in points, without a sign), decibels with one decimal."""
    if metric != "success":
        return estimate.text(1)
    values = {key: getattr(estimate, key) for key in ("mean", "low", "high")}
    scaled: dict[str, Any] = {key: None if value is None else 100 * value for key, value in values.items()}
    return replace(estimate, **scaled).text(1, unit)


def _giga(flops: int | None) -> str:
    return "-" if flops is None else f"{flops / 1e12:.2f}T" if flops >= 1e12 else f"{flops / 1e9:.1f}G"


def _csv(metric: str, e: Estimate) -> dict[str, Any]:
    row: dict[str, Any] = {"metric": metric, "mean": e.mean, "low": e.low, "high": e.high}
    row |= {"clips": e.n, "clips_total": e.total}
    if isinstance(e, SeedEstimate):
        row |= {"seed_means": _numbers(e.seed_means), "p": e.p, "detectable": e.detectable}
    return row


def _numbers(values: Sequence[float]) -> str:
    return ";".join(f"{value:.6g}" for value in values)


def _provenance(record: Mapping[str, Any]) -> str:
    """Backbone, commits, packages, machines and dates of the runs in the table."""
    every = [run["environment"] for run in record["runs"] if "values" in run]
    commits = sorted({e["git_commit"][:10] for e in every if e["git_commit"]})
    versions = sorted({
        ", ".join(f"{name} {e['packages'][name]}" for name in ("ivedit", "torch", "diffusers") if name in e["packages"])
        for e in every
    })  # fmt: skip
    dates = sorted({e["date"][:10] for e in every})
    first = every[0]
    parts = [
        f"Sweep {record['name']}: {len(every)} runs, {dates[0]}{' to ' + dates[-1] if len(dates) > 1 else ''}",
        f"backbone {first['backbone']} ({first['backbone_fingerprint'][:12]})",
        f"on {' and '.join(sorted({machine_of(e) for e in every}))}",
        *([f"git {', '.join(commits)}"] if commits else []),
        *(version for version in versions if version),
    ]
    return "; ".join(parts) + "."
