"""What stands under every judged table: who judged, how, when, how much is missing, and whether the judge is proven."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ivedit.judge.backends.base import Backend
from ivedit.judge.judgements import STATUSES, Asking, Judgement
from ivedit.judge.protocol import PROTOCOL_VERSION, Metric, prompt_hash
from ivedit.judge.record import Kept
from ivedit.judge.verdict import Verdict

__all__ = ["footer"]


def footer(
    judgements: Sequence[Judgement], metrics: Sequence[Metric], backend: Backend, asking: Asking,
    verdicts: Mapping[str, Verdict] | None = None, kept: Kept | None = None,
) -> list[str]:  # fmt: skip
    """Lines of plain text, all from what was recorded.

    Args:
        judgements: As `ivedit.judge.runner.judge` returned them.
        metrics, backend, asking: As it was given them.
        verdicts: By metric; a metric without one is not proven.
        kept: The record behind the judgements, for its calls and stops.
    """
    counts = Counter(j.status for j in judgements)
    failed = ", ".join(f"{counts[s]} {s}" for s in STATUSES if s != "ok" and counts[s]) or "none failed"
    repaired = sum(j.repaired for j in judgements)
    dates = sorted({j.date[:10] for j in judgements if j.date})
    names = Counter(j.model or "no name" for j in judgements if j.status != "error")
    answered = ", ".join(name if len(names) == 1 else f"{name} ({count})" for name, count in names.most_common())
    sampling = ", ".join(f"{name} {_shown(value)}" for name, value in backend.sampling.items())
    shown = asking.shown
    lines = [
        f"Judge: {backend.model} ({backend.name}), answering as {answered or 'nobody'}. "
        f"{'Judged ' + ' to '.join(dates[:1] + dates[1:][-1:]) if dates else 'No date is recorded'}.",
        f"Protocol {PROTOCOL_VERSION}, prompts {prompt_hash(metrics, shown)}; {shown.frames} frames, shown between "
        f"{shown.smallest} and {shown.largest} pixels; {sampling}; {asking.repeats} repeats from seed {asking.seed}.",
        f"Judgements: {counts['ok']} of {len(judgements)} have a score ({failed}; {repaired} after a repair request). "
        "Repeats are averaged inside a clip; brackets: 95% intervals over clips, of clips scored in every method.",
    ]  # fmt: skip
    if kept is not None:
        damaged = f", {kept.damaged} torn lines" if kept.damaged else ""
        lines.append(
            f"Record: {len(kept.turns)} replies. Calls: {kept.calls}, runs: {len(kept.sessions)}, "
            f"calls that a stop cut off: {kept.cut_off}{damaged}."
        )
    known = [(verdicts or {}).get(metric.name, Verdict(metric.name)) for metric in metrics]
    said = "; ".join(verdict.text() for verdict in known) if any(verdict.relations for verdict in known) else ""
    lines.append(f"Anchors: {said or 'this very judge has judged none, so no metric is proven'}.")
    lines.append("; ".join(f"{metric.name}: {metric.title}" for metric in metrics) + ".")
    return lines


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
