"""Who owns a slot: leases of living, dead, paused and foreign workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ivedit.sweeping import claims
from ivedit.sweeping.claims import GRACE, Claim, Watch, Worker, machine_now, process_started
from ivedit.sweeping.slots import MOST_LOSSES, slot_of
from ivedit.sweeping.study import StudyStore
from tests.sweeping.conftest import with_package
from tests.sweeping.stages import grid, search

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@linux
def test_a_worker_is_gone_when_its_process_is_a_zombie_or_somebody_elses():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    worker = replace(Worker.here("w"), pid=child.pid, started=process_started(child.pid))
    assert worker.started is not None
    assert not worker.gone()
    assert replace(worker, started=worker.started - 1).gone()  # the id is in use again, by another process
    child.kill()
    while process_started(child.pid) is not None:
        time.sleep(0.01)
    assert worker.gone()  # killed, and nobody has collected it yet
    child.communicate()
    assert worker.gone()


@linux
def test_another_users_worker_whom_proc_hides_is_not_called_gone(monkeypatch: pytest.MonkeyPatch):
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    worker = replace(Worker.here("w"), pid=2**22 + 1)
    assert worker.gone()
    monkeypatch.setattr(os, "kill", refuse)  # what the kernel answers about a living process of another user
    assert not worker.gone()


@linux
@pytest.mark.parametrize("machine", ["another boot pid:[4026531836]", None])
def test_a_worker_of_another_machine_or_container_is_never_called_gone(machine: str | None):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = Worker.here("w")
    assert replace(here, pid=dead.pid, started=1).gone()
    assert not replace(here, pid=dead.pid, started=1, machine=machine).gone()
    assert not here.gone()
    assert here.machine == machine_now()


def test_a_lease_runs_out_by_the_readers_clock_alone(monkeypatch: pytest.MonkeyPatch):
    """The owner's clock is an hour off, then a day in the future: it makes no difference."""
    now = 1000.0
    monkeypatch.setattr(claims, "time", SimpleNamespace(monotonic=lambda: now, time=lambda: 0.0))
    foreign = replace(Worker.here("w"), machine="elsewhere")
    watch = Watch()
    claim = Claim("final", 0, "a", 0, foreign, Path(), lease_seconds=10)
    for beat, clock in enumerate((0.0, -3600.0, 86_400.0)):
        claim.beat = beat
        lease = {**claim.lease(), "time": clock}
        assert not watch.expired(0, lease, 60)
        now += GRACE * 10
        assert not watch.expired(0, lease, 60)
    now += 0.001
    assert watch.expired(0, lease, 60)
    assert not Watch().expired(0, lease, 60)  # a process that has just started has watched nothing yet
    assert not watch.expired(1, None, 60)
    now += 2 * 60
    assert watch.expired(1, None, 60)  # claimed, but its worker died before it wrote the lease


def test_the_dead_of_this_machine_are_replaced_at_once(storage: str | None, tmp_path: Path):
    """A worker is killed while it holds a slot under a lease of an hour; the next one does not wait for that."""
    sweep = search(1).sweep
    script = (
        "import os, sys; from pathlib import Path; from ivedit.sweeping.claims import Worker\n"
        "from ivedit.sweeping.study import StudyStore; from tests.sweeping.stages import search\n"
        f"store = StudyStore(search(2, {sweep!r}), {storage!r}, Path({str(tmp_path)!r}), lease_seconds=3600)\n"
        "store.prepare(); print(store.claim(Worker.here('first')).params['train.lr'], flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    first = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=with_package())
    assert first.returncode == -9, first.stderr
    store = StudyStore(search(2, sweep), storage, tmp_path, lease_seconds=3600)
    lost = store.reclaim_expired()
    assert [(attempt.slot, attempt.ending) for attempt in lost] == [(0, "lost")]
    assert "first (process" in str(lost[0].reason)
    claimed = [store.claim(Worker.here("second")) for _ in range(2)]
    again = next(claim for claim in claimed if claim is not None and claim.slot == 0)
    assert again.params["train.lr"] == float(first.stdout)
    assert again.earlier == tuple(lost)
    assert store.claim(Worker.here("third")) is None


def test_a_paused_process_is_fenced_off_when_it_wakes(tmp_path: Path):
    """SIGSTOP holds the worker between two renewals until another machine's worker has its slot."""
    sweep = search(1).sweep
    script = (
        "import sys; from pathlib import Path; from ivedit.sweeping.claims import Worker\n"
        "from ivedit.sweeping.study import StudyStore; from tests.sweeping.stages import search\n"
        f"store = StudyStore(search(1, {sweep!r}), None, Path({str(tmp_path)!r}), lease_seconds=0.3)\n"
        "store.prepare(); claim = store.claim(Worker.here('asleep')); print(store.renew(claim), flush=True)\n"
        "sys.stdin.readline(); print(store.renew(claim), store.finish(claim, 'COMPLETE', [0.1]), flush=True)"
    )
    paused = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=with_package()
    )
    try:
        assert paused.stdout is not None
        assert paused.stdout.readline() == "True\n"
        paused.send_signal(signal.SIGSTOP)
        store = StudyStore(search(1, sweep), None, tmp_path, lease_seconds=0.3)
        deadline = time.monotonic() + 300
        while (claim := store.claim(Worker.here("awake"))) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert store.finish(claim, "COMPLETE", [0.9])
        paused.send_signal(signal.SIGCONT)
        assert paused.communicate("\n", timeout=300)[0] == "False False\n"
    finally:
        paused.kill()
        paused.wait()
    assert [result.values for result in store.results()] == [(0.9,)]


def test_a_slot_that_kills_its_workers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run that takes all the memory takes its worker along, every time: that ends, too."""
    store = StudyStore(grid(1), None, tmp_path)
    store.prepare()
    monkeypatch.setattr(Worker, "gone", lambda self: True)
    for number in range(MOST_LOSSES + 1):
        assert not store.done()
        claim = store.claim(Worker.here())
        assert claim is not None
        assert claim.attempt == number + 1
    assert len(store.reclaim_expired()) == 1
    assert store.done()
    assert store.results()[0].state == "FAIL"
    assert "died" in str(store.results()[0].reason)


def test_a_dead_worker_beyond_a_lowered_n_trials_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sweep = search(1).sweep
    store = StudyStore(search(3, sweep), None, tmp_path)
    store.prepare()
    for _ in range(3):
        assert store.claim(Worker.here()) is not None
    fewer = StudyStore(search(2, sweep), None, tmp_path)
    monkeypatch.setattr(Worker, "gone", lambda self: True)
    assert sorted(lost.slot for lost in fewer.reclaim_expired()) == [0, 1, 2]
    assert [trial.state.name for trial in fewer.study().trials] == ["FAIL"] * 3 + ["WAITING"] * 2


class AnythingMayHappen(RuleBasedStateMachine):
    """Machines that open the same journal, fill it at once, claim, fail, die, sleep, wake and finish in any order."""

    folder: Path
    retries = 1

    @initialize(n_trials=st.integers(1, 4))
    def begin(self, n_trials: int) -> None:
        self.name = search(1).sweep
        self.place = self.folder / self.name
        self.n_trials = n_trials
        self.stores: list[StudyStore] = []
        self.held: list[tuple[StudyStore, Claim]] = []
        self.asleep: list[tuple[StudyStore, Claim]] = []
        self.failures: dict[int, int] = {}
        self.told: dict[int, float] = {}
        self.join()

    @precondition(lambda self: len(self.stores) < 3)
    @rule()
    def join(self) -> None:
        store = StudyStore(search(self.n_trials, self.name), None, self.place, retries=self.retries)
        store.prepare()
        self.stores.append(store)

    @rule(data=st.data())
    def fill_twice(self, data: st.DataObject) -> None:
        """Another machine saw the same gap and filled it, too."""
        store = data.draw(st.sampled_from(self.stores))
        slots = store.now()
        slot = data.draw(st.integers(0, self.n_trials - 1))
        if not slots.ended(slot):
            store._add(slots, slot)

    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        store = data.draw(st.sampled_from(self.stores))
        claim = store.claim(Worker.here(f"w{len(self.stores)}"))
        if claim is not None:
            assert claim.slot not in {other.slot for _, other in self.held}, "two living workers have one slot"
            assert claim.slot not in self.told, "a slot that had ended was given out"
            self.held.append((store, claim))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), how=st.sampled_from(["COMPLETE", "PRUNED", "FAIL", "nan", "release", "lose"]))
    def end(self, data: st.DataObject, how: str) -> None:
        store, claim = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        assert store.renew(claim)
        if how == "release":
            store.release(claim, "interrupted")
        elif how == "lose":  # its lease ran out while it slept
            other = data.draw(st.sampled_from(self.stores))
            trial = next(trial for trial in other.now().running() if trial.number == claim.trial)
            assert other._end(trial._trial_id, type(trial.state).FAIL, {"lost": {"reason": "slept"}})
            self.asleep.append((store, claim))
        else:
            value = float("nan") if how == "nan" else claim.trial + 0.5
            assert store.finish(claim, "COMPLETE" if how == "nan" else how, [value])  # type: ignore[arg-type]
            if how in ("FAIL", "nan"):
                self.failures[claim.slot] = self.failures.get(claim.slot, 0) + 1
            else:
                self.told[claim.slot] = value

    @precondition(lambda self: self.asleep)
    @rule(how=st.sampled_from(["COMPLETE", "FAIL"]))
    def wake(self, how: str) -> None:
        store, claim = self.asleep.pop()
        assert not store.renew(claim)
        assert not store.finish(claim, how, [-1.0])  # type: ignore[arg-type]

    @rule()
    def want_more(self) -> None:
        self.n_trials = min(self.n_trials + 1, 6)
        self.stores, self.held = [], [*self.held]
        self.join()

    @invariant()
    def every_slot_ends_once(self) -> None:
        if not getattr(self, "stores", None):
            return
        store = self.stores[-1]
        done = [trial for trial in store.study().trials if trial.state.name in ("COMPLETE", "PRUNED")]
        assert sorted(slot_of(trial) for trial in done) == sorted(self.told)  # type: ignore[type-var]
        for result in store.results():
            if result.state == "COMPLETE":
                assert result.values == (self.told[result.slot],)
            over = result.slot in self.told or self.failures.get(result.slot, 0) > self.retries
            assert store.now().ended(result.slot) == over

    def teardown(self) -> None:
        """Whatever happened, working on to the end ends every slot."""
        if not getattr(self, "stores", None):
            return
        for store, claim in self.held:
            store.release(claim, "end")
        store = self.stores[-1]
        for _ in range(100):
            claim = store.claim(Worker.here("last"))
            if claim is None:
                break
            assert store.finish(claim, "COMPLETE", [claim.trial + 0.5])
            self.told[claim.slot] = claim.trial + 0.5
        assert store.done()
        self.every_slot_ends_once()
        assert {trial.state.name for trial in store.study().trials} <= {"COMPLETE", "PRUNED", "FAIL"}


def test_whatever_happens_every_slot_ends_exactly_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nobody pulls the plug, and it takes most of the time
    monkeypatch.setattr("ivedit.sweeping.filled.SETTLE_SECONDS", 0.0)
    AnythingMayHappen.folder = tmp_path
    allowed = settings(
        max_examples=40, stateful_step_count=20, deadline=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(AnythingMayHappen, settings=allowed)
