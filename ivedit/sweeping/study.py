"""One stage of a sweep in an Optuna storage: slots that any number of workers claim, each ended exactly once.

`ivedit.sweeping.filled` says how a study keeps a trial for every open slot, `ivedit.sweeping.claims` who owns one and
for how long. A worker's day:

    store.prepare()
    while not store.done():
        claim = store.claim(worker)             # None: others run what is left
        while the child runs: store.renew(claim) or stop it; store.report(claim, step, value) -> prune it
        store.finish(claim, "COMPLETE", values)
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from ivedit.runfolder import redact
from ivedit.sweeping import proposals
from ivedit.sweeping.claims import Attempt, Claim, Ending, Outcome, SlotState, Watch, Worker, read_worker
from ivedit.sweeping.filled import DUPLICATE, FilledStudy, patient
from ivedit.sweeping.reconcile import reconcile
from ivedit.sweeping.slots import Slots, attempt_of, lease_of, report_sign, slot_of
from ivedit.sweeping.spec import SlotResult, Stage
from ivedit.sweeping.storage import StorageFailed, storage_errors

__all__ = ["StudyStore"]

_CORRECTED = "corrected:"


class StudyStore(FilledStudy):
    """A stage's slots. One per process and stage; threads may share it.

    Args:
        stage: what is to be run.
        storage: None (a journal file in ``folder``), a file ending in .journal, ``sqlite:///FILE.db``,
            ``postgresql://...`` or ``grpc://HOST:PORT``.
        folder: the sweep's folder; run folders are in its ``runs``.
        retries: how often a slot is tried again after its child failed by itself. Dead workers do not count.
        lease_seconds: for how long a claim holds without `renew`; every claim has the length it was made with.
        patience: for how many seconds a storage that fails is asked again, once it has answered at all.

    Raises:
        ConfigError: no such storage.
        IveditError: the storage cannot be reached or written; within seconds.
    """

    def __init__(
        self, stage: Stage, storage: str | None, folder: Path, *, retries: int = 2, lease_seconds: float = 60.0,
        patience: float = 60.0,
    ) -> None:  # fmt: skip
        super().__init__(stage, storage, folder, retries, patience)
        self.lease_seconds = lease_seconds
        self._watch = Watch()

    # -- claiming ------------------------------------------------------------------------------------

    @patient
    def claim(self, worker: Worker) -> Claim | None:
        """Take over a waiting slot; None when there is nothing to claim now (see `done` for whether ever).

        Slots of dead workers are taken back first. A search's parameters are drawn here. Renew the claim at least
        three times per ``lease_seconds``, from this process.
        """
        slots = self.now()
        if self._reclaim(slots):
            slots = self.now()
        if self._top_up(slots):
            slots = self.now()
        for trial in slots.waiting():
            if (claim := self._take(trial, worker)) is not None:
                return claim
        return None

    def _take(self, trial: FrozenTrial, worker: Worker) -> Claim | None:
        """Make a waiting trial this worker's; None when another was faster or the trial is a duplicate."""
        try:
            if not self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                return None
        except UpdateFinishedTrialError:
            return None
        slot = cast(int, slot_of(trial))
        folder = self.runs / self.stage.folder_name(slot)
        claim = Claim(
            self.stage.name, slot, self.stage.folder_name(slot), trial.number, worker, folder, self.lease_seconds,
            trial_id=trial._trial_id,
        )  # fmt: skip
        try:
            if not self._note(claim.trial_id, {"lease": claim.lease()}):
                return None
            slots = self.now()
            if not self._owns(claim):
                return None  # two were let in (a gRPC proxy over sqlite does that): the other one stays
            if not slots.stands(trial):
                self._end(claim.trial_id, TrialState.FAIL, DUPLICATE)
                return None
            claim.earlier = slots.earlier(trial)
            claim.handle = self._draw(claim)
            claim.params = claim.handle.params
            claim.settings = self.stage.settings(slot, claim.params)
        except BaseException:
            with contextlib.suppress(Exception):
                self._end(claim.trial_id, TrialState.FAIL, _ending("released", "interrupted while claiming", claim))
            raise
        return claim

    def _draw(self, claim: Claim) -> optuna.Trial:
        """The Optuna trial with a value for every parameter: fixed beforehand, or drawn now."""
        sampler = proposals.make_sampler(self.stage.sampler, claim.slot, self.stage.prior)
        pruner = proposals.make_pruner(self.stage.pruner)
        study = optuna.study.Study(self.stage.study, self._storage, sampler, pruner)
        trial = optuna.Trial(study, claim.trial_id)
        with proposals.without_advice():
            for name, space in self.stage.space.items():
                proposals.suggest(trial, name, space)
        return trial

    # -- owning --------------------------------------------------------------------------------------

    def renew(self, claim: Claim) -> bool:
        """Keep the slot. False: it is lost, stop the child at once and say nothing more about the slot.

        A storage that does not answer is no loss until the lease's length has passed since the last renewal.
        """
        try:
            with storage_errors(self.where):
                if not self._owns(claim):
                    return False
                claim.beat += 1
                if not self._note(claim.trial_id, {"lease": claim.lease()}):
                    return False
        except StorageFailed:
            return not claim.out_of_time()
        claim.renewed = time.monotonic()
        return True

    def report(self, claim: Claim, step: int, value: float) -> bool:
        """Tell the pruner's metric at an optimiser step. True: the trial is not worth going on with.

        A step that was reported before is ignored. While the storage does not answer, values wait for the next call.
        """
        if self.stage.pruner is None or len(self.stage.objectives) > 1:
            return False
        claim.unsent[int(step)] = report_sign(self.stage) * float(value)
        try:
            with storage_errors(self.where):
                for at in sorted(claim.unsent):
                    if at not in claim.sent:
                        claim.handle.report(claim.unsent[at], at)
                        claim.sent.add(at)
                    del claim.unsent[at]
                return bool(claim.handle.should_prune())
        except (StorageFailed, UpdateFinishedTrialError):
            return False

    @patient
    def finish(
        self, claim: Claim, state: Literal["COMPLETE", "PRUNED", "FAIL"], values: Sequence[float] | None = None,
        reason: str | None = None, facts: Mapping[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """End the trial; after a FAIL the slot waits again while it has retries. False: the slot was lost before.

        COMPLETE needs a finite value per objective and is a FAIL without. ``facts`` (plain containers) are kept
        beside the values.
        """
        if state == "COMPLETE" and (wrong := self._unusable(values)):
            state, values, reason = "FAIL", None, wrong
        ended = _ending("failed" if state == "FAIL" else None, reason, claim) | {"facts": dict(facts or {})}
        told = self._finish(claim, TrialState[state], ended, values if state == "COMPLETE" else None)
        if state == "FAIL":
            self._top_up()
        return told

    @patient
    def release(self, claim: Claim, reason: str) -> None:
        """Give the slot back unfinished, as Ctrl-C does: it waits again, and its run folder is continued."""
        if self._finish(claim, TrialState.FAIL, _ending("released", reason, claim)):
            self._top_up()

    def _finish(
        self, claim: Claim, state: TrialState, notes: Mapping[str, Any], values: Sequence[float] | None = None
    ) -> bool:
        if self._owns(claim) and self._end(claim.trial_id, state, notes, values):
            return True
        # Told before, but the answer was lost on the way and the storage was asked again?
        trial = self._storage.get_trial(claim.trial_id)
        return trial.state == state and (trial.user_attrs.get("ending") or {}).get("by") == claim.owner

    def _unusable(self, values: Sequence[float] | None) -> str | None:
        names = [objective.metric for objective in self.stage.objectives]
        if values is None or len(values) != len(names):
            return f"the run has no value for {' and '.join(names)}"
        wrong = [f"{name} is {value}" for name, value in zip(names, values, strict=True) if not math.isfinite(value)]
        return ", ".join(wrong) or None

    def _owns(self, claim: Claim) -> bool:
        trial = self._storage.get_trial(claim.trial_id)
        return trial.state == TrialState.RUNNING and (lease_of(trial) or {}).get("owner") == claim.owner

    # -- looking after others -------------------------------------------------------------------------

    @patient
    def reclaim_expired(self) -> list[Attempt]:
        """Take back the slots of workers that died or were cut off; `claim` does so too. Call it now and then.

        A worker on another machine is given up when its lease stood still while this process was looking on, so the
        first call after a start finds only the dead of this machine.
        """
        taken = self._reclaim(self.now())
        if taken:
            self._top_up()
        return taken

    def _reclaim(self, slots: Slots) -> list[Attempt]:
        taken = []
        for trial in slots.running():
            if self.given_up(trial):
                reason = f"{read_worker(lease_of(trial)) or 'a worker'} died, or was cut off from the storage"
                if self._end(trial._trial_id, TrialState.FAIL, {"lost": {"reason": reason}}):
                    taken.append(dataclasses.replace(attempt_of(trial), state="FAIL", ending="lost", reason=reason))
        return taken

    def given_up(self, trial: FrozenTrial) -> bool:
        """Whether a running trial's owner is dead or has let its lease run out."""
        return self._watch.expired(trial.number, lease_of(trial), self.lease_seconds)

    # -- the run folders are the truth ----------------------------------------------------------------

    @patient
    def reconcile(self, read_result: Callable[[Path], Outcome | None]) -> list[str]:
        """Bring the study in line with the run folders of this machine; at every start, before claiming.

        A slot whose run has ended although no worker told so is ended now; a complete trial with other values than
        its run folder is noted, and `results` has the folder's.

        Args:
            read_result: a run folder's outcome, None while it has none (or is not there).

        Returns:
            What was done, a plain line each.

        Raises:
            ConfigError: run folders of a search that this storage knows nothing about.
        """
        return reconcile(self, read_result)

    def end_as(self, trial: FrozenTrial, outcome: Outcome) -> bool:
        """End a given-up trial as its run folder says; False when it has ended."""
        ending = {"kind": None, "reason": outcome.reason, "by": "reconcile"}
        notes = {"ending": ending, "facts": dict(outcome.facts)}
        return self._end(trial._trial_id, TrialState[outcome.state], notes, outcome.values)

    def claim_slot(self, slot: int, worker: Worker) -> Claim | None:
        """Claim one slot, also one that has ended as failed; None when it is not to be had."""
        slots = self.now()
        if slots.ended(slot):
            return self._take(self._storage.get_trial(self._add(slots, slot)), worker)
        waiting = [trial for trial in slots.waiting() if slot_of(trial) == slot]
        return self._take(waiting[0], worker) if waiting else None

    def correct(self, trial: int, values: Sequence[float]) -> None:
        """Keep values that count instead of an ended trial's."""
        self._storage.set_study_user_attr(self._number, f"{_CORRECTED}{trial}", list(values))

    def corrected(self) -> Slots:
        """The slots with the values that count."""
        notes = self._storage.get_study_user_attrs(self._number)
        values = {int(key.removeprefix(_CORRECTED)): notes[key] for key in notes if key.startswith(_CORRECTED)}
        return Slots(self.stage, self._storage.get_all_trials(self._number, deepcopy=False), self.retries, values)

    # -- reading -------------------------------------------------------------------------------------

    @patient
    def slots(self) -> list[SlotState]:
        """Every slot as it is now."""
        slots = self.corrected()
        return [slots.state(slot, self.runs) for slot in range(self.stage.n_trials)]

    @patient
    def done(self) -> bool:
        """Whether every slot has ended: complete, pruned, or out of retries."""
        slots = self.now()
        return all(slots.ended(slot) for slot in range(self.stage.n_trials))

    @patient
    def results(self) -> list[SlotResult]:
        """Every slot's result, also of those that have none yet."""
        slots = self.corrected()
        return [slots.result(slot, self.runs) for slot in range(self.stage.n_trials)]

    def study(self) -> optuna.Study:
        """The study for Optuna's own functions, such as its plots. Read only."""
        with storage_errors(self.where):
            return optuna.study.Study(self.stage.study, self._storage)


def _ending(kind: Ending | None, reason: str | None, claim: Claim) -> dict[str, Any]:
    return {"ending": {"kind": kind, "reason": redact(reason) if reason else None, "by": claim.owner}}
