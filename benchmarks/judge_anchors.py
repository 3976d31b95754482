"""Ask judges of known quality about the anchors, over real HTTP, and say in which metrics each would be believed.

The oracle (``tests/judge/oracle.py``) decodes the PNGs it gets, checks their number, order, labels and colours, and
scores from the pixels. Then the same judge with a fault: red and blue exchanged, pictures under each other's labels,
one answer for everything. What must come of it: the oracle is right in every pair of every relation, and each faulty
judge is marked not valid in every metric that its fault touches.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

METRICS = ("IA", "TC", "VF", "AA", "OVE")
PAIRWISE = ("IA", "TC", "VF", "AA")
PAIRED = tuple(f"{name}.pair" for name in PAIRWISE)
# Metrics whose order rests on what a fault destroys; others may fail with them. Who takes red for blue in source and
# edit alike still sees leaks and blur, and who mixes up the pictures of one clip still sees that all are blurred.
MUST_FAIL = {
    "oracle": (),
    "red and blue exchanged": ("IA", "OVE", "IA.pair"),
    "pictures under each other's labels": ("IA", "TC", "OVE", "IA.pair", "TC.pair", "VF.pair", "AA.pair"),
    "one answer for everything": (*METRICS, *PAIRED),
}


def judges() -> dict[str, dict[str, Any]]:
    """The oracle and its faulty copies: settings of `tests.judge.oracle.Oracle` for scores and for pairs."""
    from tests.judge.oracle import disordered, swapped

    return {
        "oracle": {"scores": {}, "pairs": {}},
        "red and blue exchanged": {"scores": {"eyes": swapped}, "pairs": {"eyes": swapped}},
        "pictures under each other's labels": {"scores": {"eyes": disordered}, "pairs": {"eyes": disordered}},
        "one answer for everything": {"scores": {"constant": 3}, "pairs": {"constant": "A"}},
    }


def ask(settings: dict[str, Any], scenes: list[Any], given: argparse.Namespace, pairs: bool) -> dict[str, Any]:
    """One judge's verdicts."""
    from ivedit.judge.anchors import AnchorCases, judge_anchors, judge_pair_anchors
    from ivedit.judge.backends.http import HttpBackend
    from ivedit.judge.judgements import Asking
    from ivedit.judge.protocol import get_metric
    from ivedit.judge.showing import Shown
    from tests.judge.oracle import Oracle, OracleServer

    shown = Shown(frames=given.frames, smallest=given.smallest)
    oracle, asking = Oracle(**settings, moments=given.frames), Asking(repeats=given.repeats, attempts=1, shown=shown)
    for scene in scenes:
        oracle.tell(scene.source, scene.truth, words=(scene.name, *(f"A{i}" for i in range(9))))
    names = PAIRWISE if pairs else METRICS
    cases = AnchorCases(scenes, names)
    with OracleServer(oracle) as server:
        backend = HttpBackend(server.url, "oracle-1", temperature=0.0)
        if pairs:
            found = judge_pair_anchors(cases, names, backend, None, asking)
        else:
            found = judge_anchors(cases, [get_metric(name) for name in names], backend, None, asking)
    return {
        "judgements": len(found.judgements),
        "violations": len(oracle.violations),
        "verdicts": {
            verdict.metric: {
                "state": verdict.state,
                "relations": {f"{r.better} over {r.worse}": f"{r.right}/{r.pairs}" for r in verdict.relations},
            }
            for verdict in found.verdicts
        },
    }


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Every judge about the same scenes."""
    from ivedit.judge.anchor_scenes import sprite_scenes

    started = time.monotonic()
    scenes = sprite_scenes(given.scenes)
    found: dict[str, Any] = {}
    for name, settings in judges().items():
        parts = [ask(settings[kind], scenes, given, kind == "pairs") for kind in ("scores", "pairs")]
        found[name] = {key: sum(part[key] for part in parts) for key in ("judgements", "violations")}
        found[name]["verdicts"] = {k: v for part in parts for k, v in part["verdicts"].items()}
        states = {metric: verdict["state"] for metric, verdict in found[name]["verdicts"].items()}
        print(f"{name}: {states}", file=sys.stderr, flush=True)
    return {
        "scenes": given.scenes, "repeats": given.repeats, "frames": given.frames, "smallest": given.smallest,
        "judges": found, "seconds": round(time.monotonic() - started, 1), "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip


def failures(report: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    bad = []
    for name, judge in report["judges"].items():
        if judge["violations"]:
            bad.append(f"{name}: {judge['violations']} questions did not show what the protocol says")
        for metric, verdict in judge["verdicts"].items():
            if metric in MUST_FAIL[name] and verdict["state"] != "not valid for this judge":
                bad.append(f"{name}: {metric} is {verdict['state']}")
            counts = [[int(part) for part in text.split("/")] for text in verdict["relations"].values()]
            if name == "oracle" and any(right != pairs or pairs < 40 for right, pairs in counts):
                bad.append(f"oracle: {metric} has {verdict['relations']}")
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--scenes", type=int, default=44)
    parser.add_argument("--repeats", type=int, default=1, help="times each question is asked; an oracle is repeatable")
    parser.add_argument("--frames", type=int, default=8, help="as judge.frames")
    parser.add_argument("--smallest", type=int, default=64, help="as judge.smallest; 256 takes ten times as long")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers here as JSON")
    given = parser.parse_args()
    report = measure(given)
    print(json.dumps(report, indent=2))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    bad = failures(report)
    for line in bad:
        print(f"error: {line}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
