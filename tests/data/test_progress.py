"""Where no bar can be drawn, lines say how far a long piece of work is."""

import io
import logging

from ivedit.data import progress


def test_lines_say_how_far_how_fast_and_how_long_still(monkeypatch, caplog):
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO, "ivedit"), progress.Progress("encoding train pairs", 13000) as work:
        for _ in range(13):
            now[0] += 20
            work.advance(1000)
    assert caplog.messages == [
        "encoding train pairs: 2000 of 13000, 50.0/s, 3 min 40 s left",
        "encoding train pairs: 4000 of 13000, 50.0/s, 3 min 00 s left",
        "encoding train pairs: 6000 of 13000, 50.0/s, 2 min 20 s left",
        "encoding train pairs: 8000 of 13000, 50.0/s, 1 min 40 s left",
        "encoding train pairs: 10000 of 13000, 50.0/s, 1 min 00 s left",
        "encoding train pairs: 12000 of 13000, 50.0/s, 20 s left",
        "encoding train pairs: 13000 in 260.0 s (50.0/s)",
    ]


def test_other_ranks_and_work_without_anything_to_do_are_silent(caplog):
    with caplog.at_level(logging.INFO, "ivedit"), progress.Progress("encoding train pairs", 0):
        pass
    assert caplog.messages == []
