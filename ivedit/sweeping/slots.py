"""What the trials of a study say about its slots: pure functions of the trials, so that everyone agrees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from optuna.trial import FrozenTrial, TrialState

from ivedit.sweeping.claims import Attempt, Ending, SlotState, read_worker
from ivedit.sweeping.spec import SlotResult, Stage

__all__ = ["MOST_LOSSES", "Slots", "attempt_of", "ending_of", "lease_of", "report_sign", "slot_of"]

MOST_LOSSES = 20
"""A slot whose workers died this often is ended as failed: it may be what kills them (memory, most often)."""

_DONE = (TrialState.COMPLETE, TrialState.PRUNED)
_ALIVE = (TrialState.WAITING, TrialState.RUNNING)


class Slots:
    """The slots of a stage at one moment.

    Args:
        stage: names the slots.
        trials: all trials of its study, in order of their numbers.
        retries: how many failures of its child a slot has beyond the first.
        corrections: values that replace a trial's, by its number: see `ivedit.sweeping.reconcile`.
    """

    def __init__(
        self, stage: Stage, trials: Iterable[FrozenTrial], retries: int,
        corrections: Mapping[int, Sequence[float]] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.stage, self.retries, self.corrections = stage, retries, corrections
        self._trials: list[list[FrozenTrial]] = [[] for _ in range(stage.n_trials)]
        self._beyond: list[FrozenTrial] = []  # of slots that a lowered n_trials no longer has
        for trial in trials:
            slot = slot_of(trial)
            if slot is not None and ending_of(trial)[0] != "duplicate":
                (self._trials[slot] if slot < stage.n_trials else self._beyond).append(trial)

    def current(self, slot: int) -> FrozenTrial | None:
        """The trial that stands for a slot: the one that is done, else the one that lives, else the last failure.

        A trial that waits although the slot is out of retries does not live: two machines made one each.
        """
        trials = self._trials[slot]
        alive = (TrialState.RUNNING,) if self._out_of_retries(slot) else (TrialState.WAITING, TrialState.RUNNING)
        for states in (_DONE, alive):
            if found := [trial for trial in trials if trial.state in states]:
                return found[0]
        failed = [trial for trial in trials if trial.state == TrialState.FAIL]
        return failed[-1] if failed else None

    def attempts(self, slot: int) -> list[FrozenTrial]:
        """The trials made for a slot, duplicates not counted."""
        return self._trials[slot]

    def ended(self, slot: int) -> bool:
        """Nothing more happens with this slot: it is complete, pruned, or out of retries."""
        trial = self.current(slot)
        if trial is None or trial.state in _ALIVE:
            return False
        if trial.state in _DONE:
            return True
        return self._out_of_retries(slot)

    def _out_of_retries(self, slot: int) -> bool:
        kinds = [ending_of(trial)[0] for trial in self._trials[slot]]
        return kinds.count("failed") > self.retries or kinds.count("lost") > MOST_LOSSES

    def missing(self) -> list[int]:
        """Slots that need a trial: neither ended nor with one alive."""
        return [slot for slot in range(self.stage.n_trials) if not self.ended(slot) and not self._alive(slot)]

    def waiting(self) -> list[FrozenTrial]:
        """The trials that may be claimed, the longest waiting first."""
        found = [trial for slot in range(self.stage.n_trials) if (trial := self._alive(slot)) is not None]
        return sorted((trial for trial in found if trial.state == TrialState.WAITING), key=lambda trial: trial.number)

    def running(self) -> list[FrozenTrial]:
        """All trials that somebody runs, or ran when it died, whether their slot needs them or not."""
        return [t for trials in (*self._trials, self._beyond) for t in trials if t.state == TrialState.RUNNING]

    def superseded(self) -> list[FrozenTrial]:
        """Waiting trials that their slot does not need: two machines made one each."""
        return [t for trials in self._trials for t in trials if t.state == TrialState.WAITING and not self.stands(t)]

    def stands(self, trial: FrozenTrial) -> bool:
        """Whether this trial is the one that its slot needs; False for a duplicate."""
        slot = slot_of(trial)
        current = self.current(slot) if slot is not None and slot < self.stage.n_trials else None
        return current is not None and current.number == trial.number

    def earlier(self, trial: FrozenTrial) -> tuple[Attempt, ...]:
        """The attempts at a trial's slot before it, the last one last."""
        slot = cast(int, slot_of(trial))
        return tuple(attempt_of(other) for other in self._trials[slot] if other.number < trial.number)

    def params_for(self, slot: int) -> Mapping[str, Any] | None:
        """What an earlier attempt drew, or was given; None when there was no attempt."""
        fixed = None
        for trial in self._trials[slot]:
            if set(trial.params) >= set(self.stage.space):
                return dict(trial.params)
            fixed = trial.system_attrs.get("fixed_params", fixed)
        return fixed

    def state(self, slot: int, runs: Path) -> SlotState:
        """A slot as tables show it."""
        trial = self.current(slot)
        label = self.stage.cells[slot].label if self.stage.cells is not None else "trial"
        folder = runs / self.stage.folder_name(slot)
        if trial is None:
            return SlotState(slot, label, "WAITING", False, None, 0, {}, None, folder)
        attempt, lease = attempt_of(trial), lease_of(trial)
        steps = trial.intermediate_values
        return SlotState(
            slot, label, cast(Any, trial.state.name), self.ended(slot), trial.number, len(self._trials[slot]),
            params=dict(trial.params), values=self.values(trial), run_folder=folder, reason=attempt.reason,
            worker=attempt.worker if trial.state == TrialState.RUNNING else None,
            since=lease["time"] if lease and trial.state == TrialState.RUNNING else None,
            step=max(steps) if steps else None, reported=report_sign(self.stage) * steps[max(steps)] if steps else None,
            facts=trial.user_attrs.get("facts", {}),
        )  # fmt: skip

    def result(self, slot: int, runs: Path) -> SlotResult:
        """A slot as reports use it."""
        state = self.state(slot, runs)
        return SlotResult(
            self.stage.name, slot, state.label, state.state, state.values, state.run_folder, state.attempts,
            reason=state.reason, cell=self.stage.cells[slot] if self.stage.cells is not None else None,
            params=state.params, trial=state.trial,
        )  # fmt: skip

    def values(self, trial: FrozenTrial) -> tuple[float, ...] | None:
        """A complete trial's values, corrected where its run folder says otherwise; None for any other."""
        if trial.state != TrialState.COMPLETE:
            return None
        return tuple(self.corrections.get(trial.number, trial.values))

    def _alive(self, slot: int) -> FrozenTrial | None:
        trial = self.current(slot)
        return trial if trial is not None and trial.state in _ALIVE else None


def report_sign(stage: Stage) -> int:
    """What a reported value is multiplied by: Optuna's pruners go by the study's direction, whatever is reported."""
    return 1 if stage.pruner is None or stage.pruner.direction == stage.objectives[0].direction else -1


def slot_of(trial: FrozenTrial) -> int | None:
    """The slot that a trial is for; None for a trial that is none of ours."""
    slot = trial.user_attrs.get("slot")
    return slot if isinstance(slot, int) and slot >= 0 else None


def lease_of(trial: FrozenTrial) -> dict[str, Any] | None:
    """The lease of a trial's owner; None before it was written."""
    return trial.user_attrs.get("lease")


def ending_of(trial: FrozenTrial) -> tuple[Ending | None, str | None]:
    """How and why an ended trial ended. A trial that was told FAIL by someone else counts as its child's failure."""
    if trial.state not in (TrialState.FAIL, TrialState.PRUNED):
        return None, None
    if trial.state == TrialState.FAIL and (lost := trial.user_attrs.get("lost")):
        return "lost", lost["reason"]
    ending = trial.user_attrs.get("ending") or {"kind": "failed", "reason": "told FAIL from elsewhere"}
    return (ending["kind"] if trial.state == TrialState.FAIL else None), ending["reason"]


def attempt_of(trial: FrozenTrial) -> Attempt:
    """A trial as one attempt at its slot."""
    kind, reason = ending_of(trial)
    state = cast(Any, trial.state.name)
    return Attempt(trial.number, cast(int, slot_of(trial)), state, kind, reason, read_worker(lease_of(trial)))
