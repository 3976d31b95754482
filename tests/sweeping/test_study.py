"""What every storage must hold for a sweep: slots are claimed by one worker, ended once, and survive their workers."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ivedit.errors import ConfigError, IveditError
from ivedit.sweeping import claims
from ivedit.sweeping.claims import Claim, Outcome, Worker
from ivedit.sweeping.spec import PriorStudy, SamplerSpec, Stage
from ivedit.sweeping.study import StudyStore
from tests.sweeping.stages import grid, pruned_by_loss, search, two_objectives

ME = Worker.here("me")


def opened(stage: Stage, storage: str | None, folder: Path, **options: float) -> StudyStore:
    store = StudyStore(stage, storage, folder, **options)  # type: ignore[arg-type]
    store.prepare()
    return store


def claimed(store: StudyStore, worker: Worker = ME) -> Claim:
    claim = store.claim(worker)
    assert claim is not None
    return claim


def states(store: StudyStore) -> list[str]:
    return [result.state for result in store.results()]


def test_a_grid_runs_every_cell_once(storage: str | None, tmp_path: Path):
    stage = grid(4)
    store = opened(stage, storage, tmp_path)
    seen = []
    while (claim := store.claim(ME)) is not None:
        seen.append((claim.slot, claim.settings, claim.run_folder))
        assert store.renew(claim)
        assert store.finish(claim, "COMPLETE", [claim.slot / 7], facts={"run_id": f"run{claim.slot}"})
    assert seen == [(i, stage.settings(i), tmp_path / "runs" / stage.folder_name(i)) for i in range(4)]
    assert store.done()
    results = store.results()
    assert [result.values for result in results] == [(i / 7,) for i in range(4)]  # to the last bit
    assert [(result.label, result.cell, result.attempts) for result in results] == [
        (cell.label, cell, 1) for cell in stage.cells or ()
    ]
    assert store.slots()[2].facts == {"run_id": "run2"}


def test_a_restart_finishes_the_rest_and_never_exceeds(storage: str | None, tmp_path: Path):
    stage = search(5)
    first = opened(stage, storage, tmp_path)
    for _ in range(3):
        first.finish(claimed(first), "COMPLETE", [0.5])
    second = opened(stage, storage, tmp_path)
    for _ in range(2):
        second.finish(claimed(second), "PRUNED", reason="pruned: hopeless")
    for _ in range(2):  # and once more, when all is done
        store = opened(stage, storage, tmp_path)
        assert store.claim(ME) is None
        assert store.done()
        assert states(store) == ["COMPLETE"] * 3 + ["PRUNED"] * 2
    assert store.results()[4].values is None
    assert store.results()[4].reason == "pruned: hopeless"
    assert len(store.study().trials) == 5


def test_raising_n_trials_adds_slots_and_lowering_leaves_them(storage: str | None, tmp_path: Path):
    name = search(1).sweep
    store = opened(search(2, name), storage, tmp_path)
    store.finish(claimed(store), "COMPLETE", [1.0])
    store.finish(claimed(store), "COMPLETE", [2.0])
    more = opened(search(3, name), storage, tmp_path)
    assert not more.done()
    third = claimed(more)
    assert third.slot == 2
    fewer = opened(search(1, name), storage, tmp_path)
    assert fewer.done()
    assert fewer.claim(ME) is None
    assert fewer.slots()[0].trial == 0
    assert more.finish(third, "COMPLETE", [3.0])
    assert [result.values for result in more.results()] == [(1.0,), (2.0,), (3.0,)]


def test_a_failure_is_tried_again_with_the_same_parameters_until_retries_are_used_up(
    storage: str | None, tmp_path: Path
):
    store = opened(search(1), storage, tmp_path, retries=2)
    attempts = []
    for number in range(3):
        claim = claimed(store)
        attempts.append((claim.attempt, dict(claim.params), claim.run_folder))
        assert [earlier.reason for earlier in claim.earlier] == [f"exit code {i}" for i in range(number)]
        assert not store.done()
        assert store.finish(claim, "FAIL", reason=f"exit code {number}")
    assert attempts == [(i + 1, attempts[0][1], attempts[0][2]) for i in range(3)]
    assert set(attempts[0][1]) == set(store.stage.space)
    assert store.done()
    assert store.claim(ME) is None
    result = store.results()[0]
    assert (result.state, result.reason, result.attempts, result.values) == ("FAIL", "exit code 2", 3, None)
    # More retries, asked for later, take the slot up again.
    again = claimed(opened(store.stage, storage, tmp_path, retries=3))
    assert again.attempt == 4
    assert dict(again.params) == attempts[0][1]


def test_a_released_slot_uses_up_no_retry(storage: str | None, tmp_path: Path):
    store = opened(grid(1), storage, tmp_path, retries=0)
    for number in range(4):
        claim = claimed(store)
        assert claim.attempt == number + 1
        store.release(claim, "interrupted (Ctrl-C)")
        assert store.slots()[0].state == "WAITING"
        assert not store.done()
    assert store.finish(claimed(store), "COMPLETE", [1.0])
    assert store.done()


@pytest.mark.parametrize("values", [None, [], [float("nan")], [float("inf")], [1.0, 2.0]])
def test_a_run_without_a_finite_value_per_objective_is_a_failure(tmp_path: Path, values: list[float] | None):
    store = opened(search(1), None, tmp_path, retries=0)
    assert store.finish(claimed(store), "COMPLETE", values)
    result = store.results()[0]
    assert result.state == "FAIL"
    assert result.reason is not None
    assert "success" in result.reason


def test_a_worker_that_wakes_after_its_lease_ran_out_is_refused(storage: str | None, tmp_path: Path):
    stage = pruned_by_loss(1)
    asleep = opened(stage, storage, tmp_path, lease_seconds=0.2)
    old = claimed(asleep)
    other = opened(stage, storage, tmp_path, lease_seconds=0.2)
    assert other.reclaim_expired() == []  # seen for the first time: whose clock is right is not asked
    deadline = time.monotonic() + 300
    while not (taken := other.reclaim_expired()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [(lost.slot, lost.ending, lost.worker) for lost in taken] == [(0, "lost", ME)]
    new = claimed(other)
    assert (new.slot, new.attempt, dict(new.params)) == (0, 2, dict(old.params))

    assert not asleep.renew(old)
    assert not asleep.report(old, 1, 0.5)
    assert not asleep.finish(old, "COMPLETE", [0.1])
    assert not asleep.finish(old, "FAIL", reason="too late")
    asleep.release(old, "too late")

    assert other.renew(new)
    assert other.finish(new, "COMPLETE", [0.9])
    assert [(result.state, result.values, result.attempts) for result in asleep.results()] == [("COMPLETE", (0.9,), 2)]
    assert sum(trial.state.name == "COMPLETE" for trial in other.study().trials) == 1


def test_a_renewed_lease_is_never_taken(
    storage: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = 0.0
    monkeypatch.setattr(claims, "time", SimpleNamespace(monotonic=lambda: now, time=time.time))
    stage = grid(1)
    store, other = (opened(stage, storage, tmp_path, lease_seconds=10) for _ in range(2))
    claim = claimed(store)
    for _ in range(3):
        assert other.claim(ME) is None
        now += 14  # late, but within the grace that a reader gives
        assert other.claim(ME) is None
        assert store.renew(claim)
    assert store.finish(claim, "COMPLETE", [1.0])
    assert other.results()[0].attempts == 1


def test_two_machines_that_fill_a_study_at_once_run_no_slot_twice(storage: str | None, tmp_path: Path):
    stage = search(3)
    one, two = opened(stage, storage, tmp_path), opened(stage, storage, tmp_path)
    for slot in range(3):  # what a simultaneous fill leaves behind: a second trial of every slot
        two._add(two.now(), slot)
    waiting = one.study().trials
    assert len(waiting) == 6
    assert two._take(waiting[4], ME) is None  # claimed by a worker that had not seen the first one
    done = []
    for store in (one, two) * 4:
        if (claim := store.claim(ME)) is not None:
            done.append(claim.slot)
            assert store.finish(claim, "COMPLETE", [float(claim.slot)])
    assert done == [0, 1, 2]
    assert one.done()
    assert [result.attempts for result in one.results()] == [1, 1, 1]
    assert sorted(trial.state.name for trial in one.study().trials) == ["COMPLETE"] * 3 + ["FAIL"] * 3


def test_a_trial_made_twice_is_no_further_retry(storage: str | None, tmp_path: Path):
    store = opened(grid(1), storage, tmp_path, retries=0)
    store._add(store.now(), 0)
    assert store.finish(claimed(store), "FAIL", reason="exit code 1")
    assert store.done()
    assert store.claim(ME) is None
    assert store.results()[0].reason == "exit code 1"


def test_an_end_that_was_told_is_told_again_without_harm(storage: str | None, tmp_path: Path):
    """The storage took the end, but its answer was lost on the way: asking again says yes, to its owner only."""
    stage = grid(2)
    store = opened(stage, storage, tmp_path)
    claim, other = claimed(store), claimed(store)
    assert store.finish(claim, "COMPLETE", [1.0])
    assert store.finish(claim, "COMPLETE", [1.0])
    assert not store.finish(claim, "FAIL", reason="no")
    other.trial_id = claim.trial_id
    assert not store.finish(other, "COMPLETE", [2.0])
    assert store.results()[0].values == (1.0,)


def test_a_trial_that_two_were_given_belongs_to_the_last_who_says_so(storage: str | None, tmp_path: Path):
    """Optuna's own proxy over sqlite lets two workers in; the first one finds the other's lease at its next renewal."""
    stage = grid(1)
    store, other = opened(stage, storage, tmp_path), opened(stage, storage, tmp_path)
    first = claimed(store)
    second = replace(first, worker=Worker.here("second"), owner="another")
    assert other._note(second.trial_id, {"lease": second.lease()})
    assert not store.renew(first)
    assert not store.finish(first, "COMPLETE", [0.1])
    store.release(first, "interrupted")
    assert other.renew(second)
    assert other.finish(second, "COMPLETE", [0.2])
    assert [(result.values, result.attempts) for result in store.results()] == [((0.2,), 1)]


def test_a_hopeless_trial_is_pruned_by_a_metric_of_the_other_direction(storage: str | None, tmp_path: Path):
    store = opened(pruned_by_loss(4), storage, tmp_path)
    for loss in (0.1, 0.2, 0.15):  # success is maximised, the loss that is reported is minimised
        claim = claimed(store)
        assert not any(store.report(claim, step, loss / step) for step in (1, 2, 2, 3))
        assert store.finish(claim, "COMPLETE", [1 - loss])
    claim = claimed(store)
    assert not store.report(claim, 1, 5.0)  # the warm-up
    assert store.report(claim, 2, 5.0)
    assert (store.slots()[3].step, store.slots()[3].reported) == (2, 5.0)
    assert store.finish(claim, "PRUNED", reason="pruned: val/loss 5 at step 2")
    assert store.study().trials[3].value is None  # a loss is no success


def test_two_objectives_are_kept_and_nothing_is_pruned(storage: str | None, tmp_path: Path):
    store = opened(two_objectives(2), storage, tmp_path)
    for values in ([0.5, 1e6], [0.6, 2e6]):
        claim = claimed(store)
        assert not store.report(claim, 1, 1.0)
        assert store.finish(claim, "COMPLETE", values)
    assert [result.values for result in store.results()] == [(0.5, 1e6), (0.6, 2e6)]
    assert len(store.study().best_trials) == 2


def test_another_definition_under_the_same_name_is_refused_with_what_changed(storage: str | None, tmp_path: Path):
    stage = search(2)
    opened(stage, storage, tmp_path)
    changed = search(2, stage.sweep, definition={"space": {**stage.definition["space"], "train.lr": {"low": 0.5}}})
    with pytest.raises(ConfigError) as error:
        opened(changed, storage, tmp_path)
    assert len(str(error.value).splitlines()) == 1
    assert "space.train.lr.low: 0.0001 -> 0.5" in str(error.value)
    assert "name=" in str(error.value)
    with pytest.raises(IveditError, match="no study"):  # and nothing of it was written
        StudyStore(changed, storage, tmp_path).results()
    opened(stage, storage, tmp_path)


def test_prior_trials_run_first_and_the_best_of_another_study_too(storage: str | None, tmp_path: Path):
    old = opened(search(4), storage, tmp_path)
    for value in (0.1, 0.9, 0.5, 0.7):
        old.finish(claimed(old), "COMPLETE", [value])
    best = [old.results()[i].params for i in (1, 3)]
    given = {"train.lr": 0.005}
    store = opened(search(4, prior=(given, PriorStudy(f"{old.stage.sweep}-search", 2))), storage, tmp_path)
    drawn = [dict(claimed(store).params) for _ in range(4)]
    assert drawn[0]["train.lr"] == 0.005
    assert drawn[1:3] == best
    assert len({str(params) for params in drawn}) == 4
    wrong = StudyStore(search(4, prior=(PriorStudy(f"{old.stage.sweep}-serch", 2),)), storage, tmp_path)
    with pytest.raises(ConfigError, match="did you mean"):
        wrong.prepare()
    assert not wrong.exists()  # nothing half-made


def test_what_a_dead_worker_could_not_tell_is_read_from_the_run_folder(
    storage: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Reconciling ends a slot by its folder: running with a dead owner, waiting again, or given up as failed."""
    monkeypatch.setattr(Worker, "gone", lambda self: self.name == "dead")
    store = opened(search(4), storage, tmp_path, retries=0)
    waiting, failed, other = (claimed(store) for _ in range(3))
    store.release(waiting, "interrupted")
    store.finish(failed, "FAIL", reason="no room")
    store.finish(other, "COMPLETE", [0.25])
    assert store.reconcile(lambda folder: None) == []  # no run folder on this machine: nothing is concluded
    running = claimed(store, Worker.here("dead"))
    told = {
        waiting.run_folder: Outcome("COMPLETE", (0.75,)),
        failed.run_folder: Outcome("PRUNED", None, "pruned: hopeless"),
        other.run_folder: Outcome("COMPLETE", (0.125,)),
        running.run_folder: Outcome("COMPLETE", (0.5,), facts={"run_id": "a"}),
    }
    said = store.reconcile(told.get)
    assert [line.partition(":")[0] for line in said] == [folder.name for folder in told]
    results = opened(store.stage, storage, tmp_path).results()
    assert [result.values for result in results] == [(0.75,), None, (0.125,), (0.5,)]
    assert [result.state for result in results] == ["COMPLETE", "PRUNED", "COMPLETE", "COMPLETE"]
    assert store.slots()[3].facts == {"run_id": "a"}
    assert not store.finish(running, "COMPLETE", [9.0])
    assert store.reconcile(told.get) == []  # once


def test_a_grid_search_covers_every_point_once(tmp_path: Path):
    from ivedit.sweeping.spec import Choice, Range

    space = {"editor.width": Choice((64, 128)), "depth": Range(1, 3, whole=True)}
    stage = search(6, space=space, sampler=SamplerSpec("grid", 3))
    store = opened(stage, None, tmp_path)
    drawn = [tuple(claimed(store).params.values()) for _ in range(6)]
    assert sorted(drawn) == [(width, depth) for width in (64, 128) for depth in (1, 2, 3)]
    assert drawn != sorted(drawn)
    fewer = opened(search(2, space=space, sampler=SamplerSpec("grid", 3)), None, tmp_path / "fewer")
    assert [tuple(claimed(fewer).params.values()) for _ in range(2)] == drawn[:2]
    with pytest.raises(ConfigError, match="6 points"):
        opened(search(7, space=space, sampler=SamplerSpec("grid", 3)), None, tmp_path / "more")
