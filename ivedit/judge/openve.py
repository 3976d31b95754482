"""A second protocol: OpenVE-Bench's three questions in one call, with its cap enforced here and not left to the judge.

OpenVE-Bench (He et al., "OpenVE-3M", arXiv:2512.07826) asks for three scores of 1 to 5: whether the instruction was
followed, how natural and steady the edit looks, and whether physics and untouched content hold. Its prompts tell the
judge that the second and third must not exceed the first, and believe it. Here every answer is capped after it came,
repeat by repeat, and what the judge said stays in the record.

The wording is ours, one for all types of edit, and the judge sees pairs of frames: numbers are comparable among tables
of this package, not with published ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ivedit.judge.answers import Answer
from ivedit.judge.judgements import Judgement
from ivedit.judge.protocol import Metric, show_pairs

__all__ = ["OPENVE", "OPENVE_PARTS", "by_part", "capped", "with_parts"]

_FIRST = "compliance"


def capped(values: Mapping[str, Any]) -> dict[str, float]:
    """The three scores of an answer, 1 to 5, none above that for compliance."""
    return {name: float(min(values[name], values[_FIRST])) for name in OPENVE.levels}


def _mean(answer: Answer) -> float:
    scores = capped(answer.values)
    return sum(scores.values()) / len(scores)


OPENVE = Metric(
    "OVE", "OpenVE-Bench's three questions, mean after the cap",
    "You rate an edited video beside its source. Both are shown as pairs of frames in order of time: Source 1 and "
    "Edit 1 are the same moment, then Source 2 and Edit 2, and so on. Give three scores, each for itself. "
    '"compliance": does the edit do what the instruction says, all of it, to nothing else, from the first frame to the '
    'last? "naturalness": does the edited video look like one recording, without seams, artefacts or flicker? '
    '"integrity": do light, shadow, perspective and motion hold, and is everything else as in the source? For a '
    "change of style, look at palette and texture of the whole picture, and whether content and motion are kept; for a "
    "new background, at the edges of what stands before it; for something removed, at what fills its place; for "
    "something added, at how it moves with the scene.",
    {
        "compliance": {
            5: "exactly what was asked for, on exactly the right thing, in every frame",
            4: "what was asked for, with a small error in an attribute or in a few frames",
            3: "mostly there, but incomplete, or something else was changed with it",
            2: "a small part of it, or done to the wrong thing",
            1: "not done: nothing of the request can be seen, or the video is unrelated",
        },
        "naturalness": {
            5: "cannot be told from an untouched recording, in any frame and from frame to frame",
            4: "a tiny seam or shimmer that only a close look finds",
            3: "visible on a normal look: soft edges, noise, light or colour that changes a little from frame to frame",
            2: "obvious seams, smears, blur or flicker",
            1: "badly broken pictures, or flicker throughout",
        },
        "integrity": {
            5: "light, perspective and motion are right, and everything else is untouched",
            4: "right but for a detail; everything else is practically untouched",
            3: "small errors of light, place or motion, or small changes elsewhere",
            2: "clear errors: something floats, slides or has lost its shape, or much else has changed",
            1: "the scene is not the source's any more, or its motion is wrong throughout",
        },
    },
    show_pairs, True, _mean,
)  # fmt: skip
"""Ask this metric; its value is the mean of the three capped scores."""

OPENVE_PARTS = tuple(
    replace(OPENVE, name=f"OVE.{name}", title=f"OpenVE-Bench, {name} after the cap", levels={name: levels})
    for name, levels in OPENVE.levels.items()
)
"""The three capped scores as columns of a table (`by_part`); they are never asked by themselves."""


def with_parts(judgements: Sequence[Judgement], metrics: Sequence[Metric]) -> tuple[list[Judgement], list[Metric]]:
    """Judgements and metrics for a table: where `OPENVE` was asked, its capped parts come after it."""
    columns = [each for metric in metrics for each in ((metric, *OPENVE_PARTS) if metric is OPENVE else (metric,))]
    return [*judgements, *by_part(judgements)], columns


def by_part(judgements: Sequence[Judgement]) -> list[Judgement]:
    """Each judgement of `OPENVE` as three, one for each of `OPENVE_PARTS`, with its capped score or its failure."""
    found = []
    for judgement in judgements:
        if judgement.metric != OPENVE.name:
            continue
        scores = capped(judgement.values) if judgement.values is not None else {}
        found += [replace(judgement, metric=f"OVE.{name}", value=scores.get(name)) for name in OPENVE.levels]
    return found
