"""Whether a judge's metric may be believed: what its anchors showed, kept so that every later table can say it.

A verdict belongs to one judge: model, sampling, prompts and the way clips are shown. For any other judge it proves
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ivedit.errors import ConfigError
from ivedit.judge.protocol import Metric, prompt_hash
from ivedit.judge.showing import Shown
from ivedit.runfolder import write_json_atomic

__all__ = ["NOT_PROVEN", "NOT_VALID", "VALID", "Relation", "Verdict", "read_verdicts", "write_verdicts"]

VALID, NOT_VALID, NOT_PROVEN = "valid", "not valid for this judge", "not proven"

ACCURACY, BOUND, PAIRS = 0.9, 0.75, 40
"""What each relation has to reach: share of pairs in the right order, lower end of its Wilson interval, pairs."""


@dataclass(frozen=True)
class Relation:
    """How often the judge ranked ``better`` above ``worse``: in ``right`` of ``pairs`` pairs (a tie is not right).

    Attributes:
        low: Lower end of the 95% Wilson interval of the share.
        lost: Pairs without a score on one of the sides; they count as not right.
    """

    better: str
    worse: str
    right: int
    pairs: int
    low: float
    lost: int = 0

    @property
    def accuracy(self) -> float:
        """Share of pairs in the right order; 0 without pairs."""
        return self.right / self.pairs if self.pairs else 0.0


@dataclass(frozen=True)
class Verdict:
    """What is known about one metric of one judge.

    Attributes:
        metric: Its name.
        prompt: `ivedit.judge.protocol.prompt_hash` of this metric alone, as the anchors were asked.
        relations: What the anchors showed.
    """

    metric: str
    prompt: str = ""
    relations: tuple[Relation, ...] = ()

    @property
    def state(self) -> str:
        """`VALID`, `NOT_VALID`, or `NOT_PROVEN` where a relation has fewer than 40 pairs or there is none."""
        if not self.relations or any(relation.pairs < PAIRS for relation in self.relations):
            return NOT_PROVEN
        good = all(relation.accuracy >= ACCURACY and relation.low >= BOUND for relation in self.relations)
        return VALID if good else NOT_VALID

    def text(self) -> str:
        """One line with the weakest relation: ``TC: not valid for this judge (A1 over A5 in 21 of 40 pairs)``."""
        if not self.relations:
            return f"{self.metric}: {NOT_PROVEN} (no anchors were judged)"
        weakest = min(self.relations, key=lambda relation: (relation.pairs >= PAIRS, relation.accuracy))
        counts = f"{weakest.right} of {weakest.pairs} pairs"
        return f"{self.metric}: {self.state} ({weakest.better} over {weakest.worse} in {counts})"


def write_verdicts(path: Path, model: str, sampling: Mapping[str, Any], verdicts: Sequence[Verdict]) -> None:
    """Keep the verdicts on one judge (`Backend.model` and `Backend.sampling`) as JSON."""
    stored = {"model": model, "sampling": dict(sampling), "verdicts": [asdict(verdict) for verdict in verdicts]}
    write_json_atomic(path, stored)


def read_verdicts(
    path: Path, model: str, sampling: Mapping[str, Any], metrics: Sequence[Metric], shown: Shown
) -> dict[str, Verdict]:
    """A verdict for each metric: the stored one where judge, prompt and showing are the very same, else not proven.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        same = stored["model"] == model and stored["sampling"] == json.loads(json.dumps(dict(sampling)))
        known = {
            (item["metric"], item["prompt"]): tuple(Relation(**each) for each in item["relations"])
            for item in stored["verdicts"]
            if same
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"cannot read the anchors' result {path}: {error}; make it again with --anchors") from error
    prompts = {metric.name: prompt_hash([metric], shown) for metric in metrics}
    return {name: Verdict(name, prompt, known.get((name, prompt), ())) for name, prompt in prompts.items()}
