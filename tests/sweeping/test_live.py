"""What a person sees of a running sweep, on a terminal and in a file."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from ivedit.sweeping.claims import SlotState, Worker
from ivedit.sweeping.live import Board, Progress, duration, row_of, summary, who
from ivedit.sweeping.spec import Cell, Objective, PrunerSpec, Range, SamplerSpec, Stage

WORKER = Worker("worker 2", "box", None, 1, None)


def stage(count: int = 4, **changes) -> Stage:
    grid = tuple(Cell(f"no_gate-seed{i}", "no_gate", i, (), {"train.lr": 0.002}) for i in range(count))
    given = {
        "sweep": "s", "name": "final", "n_trials": count, "cells": grid, "space": {}, "base": (),
        "objectives": (Objective("success"),), "sampler": SamplerSpec(), "pruner": None, "prior": (), "definition": {},
    }  # fmt: skip
    return Stage(**{**given, **changes})


def slot(number: int, state: str = "WAITING", folder: Path = Path("nowhere"), **changes) -> SlotState:
    given = {"trial": number, "attempts": 1, "params": {}, "values": None, "ended": state not in ("WAITING", "RUNNING")}
    return SlotState(number, f"slot {number}", state, run_folder=folder, **{**given, **changes})  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder after step 40 of 200, at 8 steps a second, its last line cut short."""
    rows = [{"step": 20, "val/loss": 0.5}, {"step": 40, "train/loss": 0.25, "train/steps_per_second": 8.0}]
    text = "\n".join(json.dumps(row) for row in rows) + '\n{"step": 41, "tr'
    (tmp_path / "metrics.jsonl").write_text(text)
    (tmp_path / "tracked.json").write_text(json.dumps({"params": {"steps": "200"}}))
    return tmp_path


def test_progress_is_read_from_the_run_folder(run: Path, tmp_path: Path):
    assert Progress.read(run) == Progress(40, 200, "train/loss 0.25", 20.0)
    assert Progress.read(run, "val/loss").metric == "train/loss 0.25"  # the latest line that says anything
    assert Progress.read(tmp_path / "nowhere") == Progress()


def test_rows_say_arm_seed_state_step_metric_time_left_and_worker(run: Path):
    assert row_of(stage(), slot(1, "RUNNING", run, worker=WORKER)) == (
        "1", "no_gate, seed 1, lr 0.002", "running", "40/200", "train/loss 0.25", "20 s", "worker 2, box",
    )  # fmt: skip
    ended = slot(2, "COMPLETE", values=(0.4123,), facts={"seconds": 620.0})
    assert row_of(stage(), ended)[2:6] == ("complete", "", "success 0.4123", "took 10 min")
    assert row_of(stage(), slot(3, "FAIL", reason="loss is nan"))[2:5] == ("fail", "", "loss is nan")
    assert row_of(stage(), slot(3, "FAIL", reason="loss is nan", ended=False))[2] == "again"


def test_a_searchs_trials_are_told_by_their_parameters():
    search = stage(name="search", cells=None, space={"train.lr": Range(0, 1)}, pruner=PrunerSpec("median"))
    assert who(search, slot(0, params={"train.lr": 0.00234567, "editor.gate": "none"})) == "lr 0.00235, gate none"
    assert who(search, slot(1)) == "parameters not drawn yet"


def test_a_stage_is_summed_up_in_a_line_with_the_time_that_is_left():
    states = [slot(0, "COMPLETE", values=(1.0,), facts={"seconds": 600}), slot(1, "RUNNING"), slot(2, "RUNNING"),
              slot(3), slot(4, "FAIL"), slot(5, "FAIL", ended=False), slot(6, "PRUNED")]  # fmt: skip
    text = "final: 1 of 7 complete, 1 pruned, 1 failed, 2 running, 2 waiting; about 15 min left"
    assert summary(stage(7), states) == text
    assert summary(stage(1), [slot(0)]) == "final: 0 of 1 complete, 1 waiting"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.4, "0 s"), (89, "89 s"), (100, "2 min"), (5300, "88 min"), (7500, "2 h 05 min"), (1e400, "")],
)
def test_durations_are_short(seconds: float | None, text: str):
    assert duration(seconds) == text


def test_a_terminal_gets_one_table_that_fits_with_what_runs_and_what_ended_last(run: Path, tmp_path: Path):
    states = [slot(i, "COMPLETE", values=(i / 100,)) for i in range(30)]
    states += [slot(30, "RUNNING", run, worker=WORKER), *(slot(i) for i in range(31, 60))]
    console = Console(file=io.StringIO(), force_terminal=True, width=130, height=20)
    with Board(tmp_path, console=console) as board:
        board.note("stopping")
        board.show([(stage(60), states)])
    text = console.file.getvalue()
    assert "stopping" in text
    text = text.rsplit("final: 30 of 60", 1)[1]
    assert "1 running, 29 waiting" in text and "train/loss 0.25" in text
    assert "no_gate, seed 29," in text and "no_gate, seed 3," not in text
    assert len(text.splitlines()) <= 20


def test_without_a_terminal_the_logs_new_lines_are_printed_as_they_are(tmp_path: Path, capsys):
    log = tmp_path / "log.txt"
    log.write_text("of an earlier start\n")
    with Board(tmp_path, terminal=False) as board:
        with log.open("a") as file:
            file.write("slot 1: COMPLETE [success 0.5]\nhalf a li")
        board.show([])
        with log.open("a") as file:
            file.write("ne\n")
        board.note("to go on, give the same command")
    assert capsys.readouterr().out == (
        "slot 1: COMPLETE [success 0.5]\nto go on, give the same command\nhalf a line\n"
    )
    with Board(tmp_path, terminal=False, quiet=True) as board:
        board.note("nothing")
    assert capsys.readouterr().out == ""
