"""The record of a judge: every reply it ever gave, appended to one JSONL file and found again by its key.

A reply is on the disk before anything is done with it, so a stop loses none and nothing that was answered is asked
again. What a stop can cost are the calls that were under way: each is announced in the file before it is made, so
their number is known and stands in every footer.

One object per line, ``event`` says which:

    session   a start: date, backend, model, sampling, protocol and prompt hash, frames
    asked     a call is about to be made: key, turn
    reply     its reply: key, turn, text, model, finish_reason, refusal, usage, id, calls, date, metric, case, repeat
    failed    no reply: key, turn, reason, calls, date

``turn`` is 0 for the question and 1 for the repair request; ``calls`` counts retries.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ivedit.errors import IveditError
from ivedit.judge.backends.base import Reply

_REPLY = tuple(item.name for item in fields(Reply))

__all__ = ["Kept", "Record", "read_record"]


@dataclass
class Kept:
    """What a record holds.

    Attributes:
        sessions: The starts, in order.
        turns: Replies by (key, turn), the last where another model had answered first.
        failures: The last reason why a (key, turn) has no reply; gone once it has one.
        cut_off: Calls that a stop cut off, which may have been answered and paid for without being kept.
        calls: All calls whose end is recorded, retries among them.
        damaged: Lines that are no JSON, as a stop in the middle of a write leaves them.
    """

    sessions: list[dict[str, Any]] = field(default_factory=list)
    turns: dict[tuple[str, int], Reply] = field(default_factory=dict)
    failures: dict[tuple[str, int], str] = field(default_factory=dict)
    cut_off: int = 0
    calls: int = 0
    damaged: int = 0
    _open: set[tuple[str, int]] = field(default_factory=set)

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in one line. KeyError and TypeError: it is not one of this file's."""
        kind = event["event"]
        if kind == "session":
            self.cut_off += len(self._open)
            self._open.clear()
            self.sessions.append({key: value for key, value in event.items() if key != "event"})
            return
        place = (str(event["key"]), int(event["turn"]))
        if kind == "asked":
            self._open.add(place)
        elif kind in ("reply", "failed"):
            self._open.discard(place)
            self.calls += int(event["calls"])
            if kind == "reply":
                self.turns[place] = Reply(**{name: event[name] for name in _REPLY})
                self.failures.pop(place, None)
            elif place not in self.turns:
                self.failures[place] = str(event["reason"])
        else:
            raise KeyError(kind)


def read_record(path: Path) -> Kept:
    """Everything in a record, without lines that a stop cut short; empty where there is no file yet.

    Raises:
        IveditError: the file holds something else.
    """
    kept = Kept()
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as error:
        raise IveditError(f"cannot read the judge's record {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except ValueError:
            kept.damaged += 1
            continue
        try:
            kept.add(event)
        except (KeyError, TypeError, ValueError) as error:
            raise IveditError(f"{path} is no judge's record: line {number} is not one of its events") from error
    if lines and kept.damaged and not kept.sessions:
        raise IveditError(f"{path} is no judge's record: it has no line of one")
    return kept


class Record:
    """A record open for writing, by one process at a time. Use as a context.

    Raises:
        IveditError: the file is no record, cannot be written, or another process is writing it.
    """

    def __init__(self, path: str | Path) -> None:
        from filelock import FileLock, Timeout

        self.path = Path(path)
        self._file = -1
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
            self._lock.acquire(timeout=0)
        except Timeout:
            raise IveditError(f"{path} is being written by another evaluation: wait for it or name another") from None
        except OSError as error:
            raise IveditError(f"cannot write the judge's record {path}: {error.strerror or error}") from error
        try:
            self.kept = read_record(self.path)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            end = os.lseek(self._file, 0, os.SEEK_END)
            if end and os.pread(self._file, 1, end - 1) != b"\n":  # half a line: the next one starts on its own
                os.write(self._file, b"\n")
        except OSError as error:
            self.close()
            raise IveditError(f"cannot write the judge's record {path}: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process write."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._lock.release()

    def start(self, facts: Mapping[str, Any]) -> None:
        """A session begins: who is asked, and how."""
        self._append({"event": "session", "date": _now(), **facts})

    def asked(self, key: str, turn: int) -> None:
        """A call is about to be made."""
        self._append({"event": "asked", "key": key, "turn": turn}, keep=False)

    def reply(self, key: str, turn: int, reply: Reply, calls: int, about: Mapping[str, Any]) -> Reply:
        """A reply came, after ``calls`` calls. It is on the disk when this returns it with its date."""
        dated = replace(reply, usage=dict(reply.usage), date=_now())
        self._append({"event": "reply", "key": key, "turn": turn, **asdict(dated), "calls": calls, **about})
        return dated

    def failed(self, key: str, turn: int, reason: str, calls: int) -> None:
        """No reply came."""
        self._append({"event": "failed", "key": key, "turn": turn, "reason": reason, "calls": calls, "date": _now()})

    def _append(self, event: dict[str, Any], *, keep: bool = True) -> None:
        """One line in one write; ``keep``: wait for the disk. ASCII only, so any text of a judge can be written."""
        line = (json.dumps(event, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")
        try:
            while line:  # a full disk may take a part
                line = line[os.write(self._file, line) :]
            if keep:
                os.fsync(self._file)
        except OSError as error:
            raise IveditError(f"cannot write the judge's record {self.path}: {error.strerror}") from error
        self.kept.add(event)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
