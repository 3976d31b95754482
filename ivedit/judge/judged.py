"""Judge the finished edits of a manifest: what `ivedit.judge` makes of them, as evaluation.json has it.

Clips are read when their turn comes. Judge-free and judged scores meet only in the table.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ivedit.config.schema import JudgeConfig
from ivedit.errors import ConfigError
from ivedit.evaluation.files import fit_clip, read_clip
from ivedit.evaluation.manifest import Manifest
from ivedit.evaluation.statistics import paired_difference
from ivedit.judge.backends.base import Backend
from ivedit.judge.build import asking_of, build_backend, metrics_of
from ivedit.judge.cases import Case, Cases
from ivedit.judge.estimate import estimate
from ivedit.judge.footer import footer
from ivedit.judge.judgements import Asking, Judgement
from ivedit.judge.openve import OPENVE, OPENVE_PARTS, with_parts
from ivedit.judge.pairwise import PAIRWISE, PairCases
from ivedit.judge.preferences import PreferenceTable, judge_preferences, need_evalica
from ivedit.judge.protocol import Metric
from ivedit.judge.record import Kept, Record, read_record
from ivedit.judge.runner import judge
from ivedit.judge.scores import TableRefused, score_table
from ivedit.judge.verdict import Verdict, read_verdicts

__all__ = ["Judged", "ManifestCases", "judge_manifest", "judge_plan", "judgements_csv"]

log = logging.getLogger("ivedit.judge")


class ManifestCases:
    """Every edit of a manifest as a case, read from its files when it is asked for."""

    def __init__(self, manifest: Manifest) -> None:
        self._places = [(clip, method) for clip in manifest.clips for method in manifest.methods]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> Case:
        clip, method = self._places[index]
        source = fit_clip(read_clip(clip.source), clip.facts).numpy()
        return Case.of(clip.id, method, source, read_clip(clip.edits[method]).numpy(), clip.instruction)


@dataclass(frozen=True)
class Judged:
    """What a judge made of a manifest.

    Attributes:
        content: The entry ``judge`` of evaluation.json; with ``refused`` in place of scores where too many are missing.
        judgements: Every one.
        markdown: Tables of a further protocol, to stand below the main one; may be empty.
    """

    content: dict[str, Any]
    judgements: list[Judgement]
    markdown: str = ""


def judge_plan(manifest: Manifest, settings: JudgeConfig, record: Path | None) -> str:
    """What `judge_manifest` will cost, in words; nobody is asked. ConfigError: ``judge.anchors`` names no file."""
    _anchors_are_there(settings)
    backend, asking = build_backend(settings, asks=False), asking_of(settings)
    kept = read_record(record) if record else None
    cases = ManifestCases(manifest)
    said = estimate(cases, metrics_of(settings), backend, kept, asking).text()
    if settings.pairwise:
        pairs = [PAIRWISE[name] for name in settings.pairwise]
        said += f"\npairwise: {estimate(PairCases(cases), pairs, backend, kept, asking).text()}"
    return said


def _anchors_are_there(settings: JudgeConfig) -> None:
    if settings.anchors and not Path(settings.anchors).expanduser().is_file():
        raise ConfigError(f"judge.anchors: there is no file {settings.anchors}; make it with --anchors")


def judge_manifest(
    manifest: Manifest, settings: JudgeConfig, record: Path, *, resamples: int, advance: Any = None
) -> Judged:
    """Ask the judge of ``judge.*`` about every edit, and where ``judge.pairwise`` says so about every two.

    Args:
        manifest: Checked edits.
        settings: The section ``judge``, with a backend.
        record: Where replies are kept and found; a replay reads its own and keeps none.
        resamples: Of the bootstrap over clips.
        advance: Called with the number of judgements that are done since it was last called.

    Raises:
        ConfigError: settings that cannot work, or a clip that a metric has no meaning for.
        IveditError: the judge cannot be asked; what was answered is kept.
    """
    _anchors_are_there(settings)
    if settings.pairwise and len(manifest.methods) > 2:
        need_evalica()  # known now, not after the last answer
    metrics, asking = metrics_of(settings), asking_of(settings)
    cases = ManifestCases(manifest)
    found, backend = _asked(cases, metrics, settings, record, advance)
    verdicts = _verdicts(settings, backend, metrics, asking)
    lines = footer(found, metrics, backend, asking, verdicts, _kept(settings, record))
    content, markdown = _content(found, metrics, verdicts, lines, resamples), ""
    if settings.pairwise:
        try:
            pairs, judged = _pairs(cases, settings, record, resamples, advance)
            content["pairwise"], markdown = pairs.as_dict(), pairs.markdown()
            found = found + judged
        except TableRefused as refusal:
            content["refused"] = "; ".join([*([content["refused"]] if "refused" in content else []), str(refusal)])
    return Judged(content, found, markdown)


def _asked(
    cases: Cases, metrics: Sequence[Metric], settings: JudgeConfig, record: Path, advance: Any
) -> tuple[list[Judgement], Backend]:
    backend, asking = build_backend(settings), asking_of(settings)
    if settings.backend == "replay":
        return judge(cases, metrics, backend, None, asking, advance), backend
    with Record(record) as open_record:
        return judge(cases, metrics, backend, open_record, asking, advance), backend


def _kept(settings: JudgeConfig, record: Path) -> Kept | None:
    return None if settings.backend == "replay" else read_record(record)


def _pairs(
    cases: Cases, settings: JudgeConfig, record: Path, resamples: int, advance: Any
) -> tuple[PreferenceTable, list[Judgement]]:
    backend, asking = build_backend(settings), asking_of(settings)
    known = _verdicts(settings, backend, [PAIRWISE[name] for name in settings.pairwise], asking)
    with contextlib.nullcontext() if settings.backend == "replay" else Record(record) as kept:
        return judge_preferences(
            cases, settings.pairwise, backend, kept, asking, known, resamples=resamples, advance=advance
        )


def _verdicts(
    settings: JudgeConfig, backend: Backend, metrics: Sequence[Metric], asking: Asking
) -> Mapping[str, Verdict]:
    if not settings.anchors:
        return {}
    place = Path(settings.anchors).expanduser()
    return read_verdicts(place, backend.model, backend.sampling, metrics, asking.shown)


def _content(
    judgements: Sequence[Judgement], metrics: Sequence[Metric], verdicts: Mapping[str, Verdict],
    lines: Sequence[str], resamples: int,
) -> dict[str, Any]:  # fmt: skip
    own = verdicts.get(OPENVE.name, Verdict(OPENVE.name))
    verdicts = {**verdicts, **{part.name: replace(own, metric=part.name) for part in OPENVE_PARTS}}
    judgements, metrics = with_parts(judgements, metrics)
    try:
        table = score_table(judgements, metrics, verdicts, footer=lines, resamples=resamples)
    except TableRefused as refusal:
        return {"refused": str(refusal), "metrics": [], "footer": list(lines)}
    clips = list(dict.fromkeys(j.clip for j in judgements))
    methods = list(table.rows)

    def values(method: str, name: str) -> np.ndarray:
        there = set(table.compared[name])
        return np.array([table.per_clip[method][name][clip] if clip in there else np.nan for clip in clips])

    paired = {
        ours: {
            theirs: {
                name: paired_difference(values(ours, name), values(theirs, name), resamples=resamples).as_dict()
                for name in table.metrics
            }
            for theirs in methods[i + 1 :]
        }
        for i, ours in enumerate(methods[:-1])
    }
    headings = {name: table.heading(name) for name in table.metrics}
    return {**table.as_dict(), "headings": headings, "paired": paired}


def judgements_csv(judgements: Sequence[Judgement]) -> str:
    """Every judgement on a line, with the key under which the record has its reply."""
    text = io.StringIO()
    names = ("clip", "method", "metric", "repeat", "status", "value", "reason", "model", "repaired", "date", "key")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for judgement in judgements:
        row = [getattr(judgement, name) for name in names]
        writer.writerow(["" if cell is None else cell for cell in row])
    return text.getvalue()
