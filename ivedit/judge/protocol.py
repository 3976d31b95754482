"""The judge's protocol: four separate questions about an edit, each with a written anchor for every level.

| metric | shown | asked |
|---|---|---|
| IA, Instruction Adherence | instruction; pairs of frames at the same moments | is the change there, complete? |
| TC, Temporal Consistency | two windows of consecutive edited frames, the source's as a reference | flicker, drift? |
| VF, Visual Fidelity | instruction; the same pairs | `preserve` and `render`, kept apart; VF is the lower |
| AA, Aesthetic Appeal | edited frames alone | composition, colour, appeal |

The expansions of the four names are ours. Whatever a judge reads is here and is part of `prompt_hash`; change a word
and earlier judgements are no longer comparable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from ivedit.errors import ConfigError, or_nearest
from ivedit.judge.answers import Answer, answer_schema
from ivedit.judge.cases import Case
from ivedit.judge.showing import LabelledImage, Shown, evenly, windows

__all__ = ["LEVELS", "METRICS", "PROTOCOL_VERSION", "Metric", "Part", "Question", "get_metric", "prompt_hash",
           "question_key", "questions"]  # fmt: skip

PROTOCOL_VERSION = 1
LEVELS = (1, 2, 3, 4, 5)

Part = str | LabelledImage
Show = Callable[[Case, Shown], tuple[list[Part], int]]
"""(what the judge is shown, labels before pictures; number of the highest frame label)."""


@dataclass(frozen=True)
class Metric:
    """One question of a protocol.

    Attributes:
        name: Short name, as tables show it.
        title: What the name stands for.
        task: What the judge is told before it sees anything.
        levels: For each name of a score what its levels mean, {level: meaning}.
        show: Makes the shown parts of a case.
        uses_instruction: Whether the judge reads the instruction.
        value: The metric's number from a valid answer; without it the lowest of the scores.
        lowest: The smallest value there is.
        highest: The largest.
    """

    name: str
    title: str
    task: str
    levels: Mapping[str, Mapping[int, str]]
    show: Show
    uses_instruction: bool
    value: Callable[[Answer], float] | None = None
    lowest: float = LEVELS[0]
    highest: float = LEVELS[-1]

    def of(self, answer: Answer) -> float:
        """The metric's value of one answer."""
        return float(self.value(answer) if self.value else min(answer.values[name] for name in self.levels))

    def schema(self, frames: int) -> dict[str, Any]:
        """JSON schema of the answer, with frames labelled 1 to ``frames``."""
        return answer_schema({name: sorted(levels) for name, levels in self.levels.items()}, frames)

    def before(self, case: Case) -> str:
        """The text before the pictures: the task, the instruction where it belongs, the levels."""
        lines = [self.task, ""]
        if self.uses_instruction:
            quoted = json.dumps(case.instruction, ensure_ascii=False)
            lines += [f"The instruction that the editor was given: {quoted}", ""]
        return "\n".join([*lines, *self._scales(), ""])

    def after(self) -> str:
        """The text after the pictures: what to write."""
        names = " and ".join(f'"{name}"' for name in self.levels)
        return (
            'Answer with one JSON object and nothing else. First "observations": what you see that matters here, in at '
            f"most four sentences, before you decide. Then {names}: an integer as described above. Last "
            '"evidence_frames": the numbers of the frames that decided, as labelled.'
        )

    def _scales(self) -> list[str]:
        lines = []
        for name, levels in self.levels.items():
            lines.append(f'Levels of "{name}":')
            lines += [f"{level}: {meaning}" for level, meaning in sorted(levels.items(), reverse=True)]
        return lines


@dataclass(frozen=True, eq=False)
class Question:
    """One question about one case, asked once. What a backend sends is `parts`, `schema` and `seed`, nothing else.

    Attributes:
        metric: Name of the metric.
        case_id: The case's opaque id, for the record only.
        parts: Texts and labelled pictures in the order in which the judge reads them.
        schema: JSON schema of the answer.
        repeat: 0 to repeats - 1.
        seed: Of the judge's sampling.
    """

    metric: str
    case_id: str
    parts: tuple[Part, ...]
    schema: Mapping[str, Any]
    repeat: int
    seed: int
    _digest: str = field(default="", repr=False)

    @property
    def images(self) -> tuple[LabelledImage, ...]:
        """The pictures alone, in order."""
        return tuple(part for part in self.parts if isinstance(part, LabelledImage))

    @cached_property
    def content(self) -> str:
        """sha256 of everything the judge reads: texts, labels, pixels, order, schema."""
        return self._digest or content_digest(self.parts, self.schema)


def content_digest(parts: Sequence[Part], schema: Mapping[str, Any]) -> str:
    """sha256 of what a judge reads, equal for equal frames whoever made them."""
    read = [part if isinstance(part, str) else [part.label, part.digest] for part in parts]
    return hashlib.sha256(json.dumps([read, schema]).encode()).hexdigest()


def question_key(question: Question, model: str, sampling: Mapping[str, Any]) -> str:
    """What a stored judgement is found by: sha256 of frames, prompt, model, sampling and repeat.

    Neither the case nor its method is in it: equal frames are asked about once.
    """
    facts = [question.metric, question.content, model, sampling, question.repeat, question.seed]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def questions(
    case: Case, metric: Metric, repeats: int = 5, *, shown: Shown | None = None, seed: int = 0
) -> list[Question]:
    """The same question ``repeats`` times, with the seeds ``seed``, ``seed + 1``, ...

    Raises ConfigError where the metric has no meaning for the case (TC of a single frame).
    """
    parts, frames = metric.show(case, shown or Shown())
    every: tuple[Part, ...] = (metric.before(case), *parts, metric.after())
    schema = metric.schema(frames)
    digest = content_digest(every, schema)
    return [Question(metric.name, case.id, every, schema, i, seed + i, digest) for i in range(repeats)]


def get_metric(name: str) -> Metric:
    """One of `METRICS`, or `ivedit.judge.openve.OPENVE`, by name; ConfigError when there is none."""
    from ivedit.judge.openve import OPENVE  # which is made from this module

    known = {**METRICS, OPENVE.name: OPENVE}
    if name not in known:
        raise ConfigError(f"judge metric {name!r} is not known; {or_nearest(name, known)}")
    return known[name]


def prompt_hash(metrics: Sequence[Metric], shown: Shown) -> str:
    """12 hex digits of all that is asked with these metrics, whatever the clips, and of how clips are shown."""
    told = [
        [m.name, m.task, [[name, sorted(levels.items())] for name, levels in m.levels.items()], m.after()]
        for m in sorted(metrics, key=lambda m: m.name)
    ]
    return hashlib.sha256(json.dumps([PROTOCOL_VERSION, told, asdict(shown)]).encode()).hexdigest()[:12]


# -- what is shown ----------------------------------------------------------------------------------------------


def show_pairs(case: Case, shown: Shown) -> tuple[list[Part], int]:
    """``Source 1``, ``Edit 1``, ``Source 2``, ... at moments spread evenly over the clip."""
    size, moments = shown.size(*case.source.shape[-2:]), evenly(len(case.source), shown.frames)
    parts: list[Part] = []
    for number, moment in enumerate(moments, 1):
        parts.append(LabelledImage(f"Source {number}", case.source[moment], size))
        parts.append(LabelledImage(f"Edit {number}", case.edited[moment], size))
    return parts, len(moments)


def show_edit(case: Case, shown: Shown) -> tuple[list[Part], int]:
    """``Frame 1``, ``Frame 2``, ... of the edited clip alone."""
    size, moments = shown.size(*case.source.shape[-2:]), evenly(len(case.source), shown.frames)
    return [LabelledImage(f"Frame {i}", case.edited[t], size) for i, t in enumerate(moments, 1)], len(moments)


def show_windows(case: Case, shown: Shown) -> tuple[list[Part], int]:
    """For each window of consecutive frames the source's (``Reference 1``, ...), then the edit's (``Edit 1``, ...)."""
    if len(case.source) < 2:
        raise ConfigError(f"clip {case.clip!r} has one frame and so no motion to judge; leave TC out of judge.metrics")
    size, found = shown.size(*case.source.shape[-2:]), windows(len(case.source), shown.frames)
    parts: list[Part] = []
    first = 1
    for number, moments in enumerate(found, 1):
        for label, clip, what in (("Reference", case.source, "reference"), ("Edit", case.edited, "edited video")):
            parts.append(f"Window {number} of {len(found)}, {what}, consecutive frames:")
            parts += [LabelledImage(f"{label} {i}", clip[t], size) for i, t in enumerate(moments, first)]
        first += len(moments)
    return parts, first - 1


# -- the four questions -----------------------------------------------------------------------------------------

_PAIRS = (
    "You compare an edited video with its source. Both are shown as pairs of frames in order of time: Source 1 and "
    "Edit 1 are the same moment, then Source 2 and Edit 2, and so on. "
)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "IA", "Instruction Adherence",
            _PAIRS + "Judge one thing only: was the instruction carried out? Is the change there, complete, on the "
            "right thing, and there in every frame? Whether the picture is clean, smooth or beautiful, and what else "
            "changed, is judged by others.",
            {"score": {
                5: "the change that was asked for is there, complete, on the right thing, in every frame where it "
                   "applies",
                4: "the change is there and on the right thing; a small part of it is missing, or it weakens in a few "
                   "frames",
                3: "the change is half there: it is incomplete, or is missing in about half of the frames",
                2: "only a trace of the change is there, or it was done to the wrong thing or in the wrong way, such "
                   "as another object or another colour than asked",
                1: "nothing of the change is there: the edit shows what the source shows, or something unrelated",
            }},
            show_pairs, True,
        ),
        Metric(
            "TC", "Temporal Consistency",
            "You judge whether an edited video is steady over time. You see windows of consecutive frames in order of "
            "time: first those of a reference video, which shows how things moved before the edit, then those of the "
            "edited video at the same moments. What was edited is not your concern, and the edited video may look "
            "different. Judge its motion only: does anything flicker, drift, pop in or out, stand still or jump where "
            "the reference moves steadily, or run in another order?",
            {"score": {
                5: "motion is as steady as the reference's and like it; nothing flickers, drifts, pops, freezes or "
                   "jumps",
                4: "slight unsteadiness in one or two frames, found only by looking for it",
                3: "noticeable flicker, drift or popping in some frames, or motion that at times stops or jumps",
                2: "strong flicker, drift or popping in many frames, or motion that is mostly unlike the reference's",
                1: "motion is broken: the video stands still although the reference moves, its frames are out of "
                   "order, or nearly every frame differs from its neighbours in look",
            }},
            show_windows, False,
        ),
        Metric(
            "VF", "Visual Fidelity",
            _PAIRS + "Judge two things, apart from each other and apart from whether the instruction was carried out. "
            '"preserve": is everything that the instruction does not ask to change as it is in the source? A video '
            'that equals its source preserves everything. "render": is the picture of the edited video clean, '
            "compared with the source's own quality?",
            {
                "preserve": {
                    5: "everything that was not to be changed is as in the source",
                    4: "one small difference outside what was to be changed, found only by looking for it",
                    3: "noticeable differences outside what was to be changed, such as colour that leaks onto "
                       "neighbours or background that shifts",
                    2: "large parts that were not to be changed are changed",
                    1: "hardly anything of the source is left: another scene, or everything is changed",
                },
                "render": {
                    5: "as clean as the source: no artefacts, edges and textures as sharp",
                    4: "one slight artefact or a little softness, found only by looking for it",
                    3: "noticeable artefacts, such as halos, smears, broken edges or blur, in part of the picture",
                    2: "strong artefacts or blur in large parts of the picture",
                    1: "the picture is destroyed: noise, mush or fragments",
                },
            },
            show_pairs, True,
        ),
        Metric(
            "AA", "Aesthetic Appeal",
            "You see frames of one video in order of time. Judge how appealing it is to look at: composition, colour, "
            "light, sharpness, and how well its parts go together. Simple or drawn pictures can be as appealing as "
            "photographs. How the video was made is not your concern.",
            {"score": {
                5: "very appealing: clear, well composed, colours and light in harmony, sharp where it should be",
                4: "appealing, with one small weakness",
                3: "neither appealing nor unpleasant, or strengths and weaknesses in balance",
                2: "unpleasant in part: dull or clashing colours, blur, clutter, disturbing spots",
                1: "unpleasant to look at: ugly, muddy, blurred or broken throughout",
            }},
            show_edit, False,
        ),
    )
}  # fmt: skip
"""The four metrics by name."""
