"""Judge 500 questions through a server that fails on 30% of them, killed ten times on the way, and count what is wrong.

A real server (``tests/judge/faults.py``) answers from the pixels it gets, so every right score is known. The judging
process is a real one, ended by SIGKILL at seeded places and started again on the same record. Counted afterwards, from
the server's own log: wrong scores, persisted replies that are lost or were asked for again, judgements that did not end
in their state, and replies that a kill cost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CONCURRENCY, REPEATS, TIMEOUT = 8, 5, 20.0


def asking() -> Any:
    from ivedit.judge.runner import Asking
    from ivedit.judge.showing import Shown

    return Asking(repeats=REPEATS, shown=Shown(frames=4, smallest=16), concurrency=CONCURRENCY, wait=0.01)


def child(url: str, record: Path, cases: int) -> None:
    """What is killed: one ordinary run of the judge."""
    from ivedit.judge.backends.http import HttpBackend
    from ivedit.judge.protocol import METRICS
    from ivedit.judge.record import Record
    from ivedit.judge.runner import judge
    from tests.judge.faults import MODEL, clips

    with Record(record) as opened:
        judge(clips(cases), list(METRICS.values()), HttpBackend(url, MODEL, timeout=TIMEOUT), opened, asking())


def replies(record: Path) -> dict[tuple[str, int], str]:
    """The server's id of every reply that is on the disk, by (key, turn)."""
    from ivedit.judge.record import read_record

    return {place: str(reply.id) for place, reply in read_record(record).turns.items() if reply.id}


def measure(cases: int, kills: int, share: float, seed: int) -> dict[str, Any]:
    """Run it all and count."""
    from ivedit.judge.backends.replay import ReplayBackend
    from ivedit.judge.protocol import METRICS
    from ivedit.judge.record import read_record
    from ivedit.judge.runner import judge
    from tests.judge.faults import SCENARIOS, FaultServer, clips, truth

    total = cases * len(METRICS) * REPEATS
    draw = random.Random(seed)
    places = sorted(draw.sample(range(total // 20, 3 * total // 4), kills))
    started = time.monotonic()
    with FaultServer(share, stall=TIMEOUT + 5, delay=0.05) as server, tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "judge.jsonl"
        command = [sys.executable, __file__, "--child", server.url, str(record), "--cases", str(cases)]
        persisted: list[tuple[dict[tuple[str, int], str], int]] = []
        done_kills = 0
        for place in [*places, None]:
            persisted.append((replies(record), len(server.calls)))
            process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
            while process.poll() is None and (place is None or len(replies(record)) < place):
                time.sleep(0.01)
            if place is not None and process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            code = process.wait()
            done_kills += code == -signal.SIGKILL
            if code not in (0, -signal.SIGKILL):
                raise SystemExit(f"the judging process failed with exit code {code}")
        kept, held, calls = replies(record), read_record(record), list(server.calls)
        written = sum('"event": "reply"' in line for line in record.read_text().splitlines() if line.endswith("}"))
        case_list = clips(cases)
        found = judge(case_list, list(METRICS.values()), ReplayBackend(record), None, asking())
    by_id = {case.id: case for case in case_list}
    scenarios = {call.question: call.scenario for call in calls}
    sent = {call.id: call for call in calls if call.id}
    asked_again = sum(
        (call.question, call.turn) in {(sent[reply].question, sent[reply].turn) for reply in earlier.values()}
        for earlier, since in persisted
        for call in calls[since:]
        if call.scenario != "wrong_model"  # another judge's reply: asked again on purpose
    )
    scenario_of = {key: sent[reply].scenario for (key, _), reply in kept.items()}
    wrong_state = [j for j in found if j.key in scenario_of and j.status != SCENARIOS[scenario_of[j.key]][0]]
    lost = sum(
        kept.get(place) != reply and sent[reply].scenario != "wrong_model"
        for earlier, _ in persisted
        for place, reply in earlier.items()
    )
    expected = Counter(SCENARIOS[scenario][0] for scenario in scenarios.values())
    statuses = Counter(j.status for j in found)
    return {
        "judgements": total,
        "faulty_questions": sum(scenario != "good" for scenario in scenarios.values()),
        "kinds_of_fault": len(set(scenarios.values()) - {"good"}),
        "kills": done_kills,
        "wrong_scores": sum(j.status == "ok" and j.value != truth(by_id[j.case_id], j.repeat) for j in found),
        "persisted_replies_asked_again": asked_again,
        "persisted_replies_lost": lost,
        "judgements_in_a_wrong_state": len(wrong_state),
        "statuses": dict(sorted(statuses.items())),
        "statuses_expected": dict(sorted(expected.items())),
        "replies_sent": len(sent),
        "replies_kept": written,
        "replies_lost_to_kills": len(sent) - written,
        "calls_cut_off_as_recorded": held.cut_off,
        "most_calls_that_kills_may_cost": done_kills * CONCURRENCY,
        "judgements_by_repeat": {str(i): sum(j.repeat == i for j in found) for i in range(REPEATS)},
        "seconds": round(time.monotonic() - started, 1),
        "date": datetime.now(UTC).date().isoformat(),
    }


def failures(report: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    bad = [
        f"{name} is {report[name]}, not 0"
        for name in (
            "wrong_scores", "persisted_replies_asked_again", "persisted_replies_lost", "judgements_in_a_wrong_state",
        )
        if report[name]
    ]  # fmt: skip
    if report["statuses"] != report["statuses_expected"]:
        bad.append(f"statuses are {report['statuses']}, not {report['statuses_expected']}")
    if not report["replies_lost_to_kills"] <= report["calls_cut_off_as_recorded"]:
        bad.append("the record does not account for every reply that a kill cost")
    if not report["calls_cut_off_as_recorded"] <= report["most_calls_that_kills_may_cost"]:
        bad.append("kills cost more calls than were under way")
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--cases", type=int, default=25, help="clips; each is 4 metrics x 5 repeats = 20 judgements")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.3, help="share of questions with a fault")
    parser.add_argument("--seed", type=int, default=0, help="of the places where it is killed")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers here as JSON")
    parser.add_argument("--child", nargs=2, metavar=("URL", "RECORD"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child[0], Path(given.child[1]), given.cases)
        return 0
    report = measure(given.cases, given.kills, given.share, given.seed)
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
