"""A study that is kept filled: made once, checked against its stage, a living trial for every slot that has not ended.

Optuna's `ask` makes a new trial whenever none waits, so concurrent asks overshoot. Here every trial is made in advance
for a *slot* (0 .. n_trials - 1) and workers take waiting trials over: the storage's change from WAITING to RUNNING
succeeds for one of them. A trial's end is final in every storage. The rest follows from one rule:

    a slot that has not ended has one living trial: the lowest-numbered waiting or running one.

Whoever sees a slot without one makes it (`_top_up`): at the first start, when ``n_trials`` was raised, after a
failure, after a worker died between any two steps. Two machines may do so at once: the trial with the higher number
is then refused by whoever claims it. So no lock is needed, and it does not matter where a worker is killed.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from ivedit.errors import ConfigError, IveditError
from ivedit.sweeping import proposals
from ivedit.sweeping.slots import Slots, slot_of
from ivedit.sweeping.spec import Stage, changed_message, changes
from ivedit.sweeping.storage import StorageFailed, open_storage, shown, storage_errors

__all__ = ["DUPLICATE", "FilledStudy", "patient"]

SETTLE_SECONDS = 0.5
"""A study whose slots are not getting filled for so long is filled by whoever waits for it."""

DUPLICATE = {"ending": {"kind": "duplicate", "reason": "another trial has this slot", "by": None}}
"""What is noted with a trial that its slot did not need."""

_Method = TypeVar("_Method", bound=Callable[..., Any])


def patient(method: _Method) -> _Method:
    """Ask a storage again for a while when it fails: a server that restarts costs a long sweep nothing."""

    @functools.wraps(method)
    def asking(self: FilledStudy, *args: Any, **kwargs: Any) -> Any:
        deadline, pause = time.monotonic() + self.patience, 0.1
        while True:
            try:
                with storage_errors(self.where):
                    return method(self, *args, **kwargs)
            except StorageFailed:
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, 5.0)

    return asking  # type: ignore[return-value]


class FilledStudy:
    """The part of `ivedit.sweeping.study.StudyStore` that makes the study and its trials."""

    def __init__(self, stage: Stage, storage: str | None, folder: Path, retries: int, patience: float) -> None:
        self.stage, self.folder, self.retries, self.patience = stage, Path(folder), retries, patience
        self.where = shown(storage, self.folder)
        self._storage: BaseStorage = open_storage(storage, self.folder)
        self._found: int | None = None

    @property
    def runs(self) -> Path:
        """Where the slots' run folders are."""
        return self.folder / "runs"

    @patient
    def prepare(self) -> None:
        """Make the study where it is missing, check that it is this stage's, and fill up its slots.

        Any number of machines may do so at once, at any time; a study that is complete is left as it is. A raised
        ``n_trials`` adds slots, a lowered one leaves further slots alone.

        Raises:
            ConfigError: the storage holds this stage with another definition, or the prior study is not there.
        """
        made = self._make_study()
        if not made:
            self._refuse_other_cells()
            self._let_others_fill()
        self._top_up(alone=made)

    @patient
    def exists(self) -> bool:
        """Whether the storage holds the study already; it is not made by asking."""
        return self._find_study()

    def _let_others_fill(self) -> None:
        """Wait while another machine, which made this study a moment ago, gives it its trials."""
        missing, since = -1, 0.0
        while now := len(self.now().missing()):
            if now != missing:
                missing, since = now, time.monotonic()
            elif time.monotonic() - since > SETTLE_SECONDS:
                return
            time.sleep(SETTLE_SECONDS / 5)

    def _make_study(self) -> bool:
        """Make the study, or find it and check it. True when this call made it."""
        stage, made = self.stage, False
        about: dict[str, Any] = {}
        directions = [StudyDirection[objective.direction.upper()] for objective in stage.objectives]
        if not self._find_study():
            self._refuse_other_definitions()
            about["prior"] = self._prior()  # before anything is made: it may be refused
            try:
                self._storage.create_new_study(directions, stage.study)
                made = True
            except DuplicatedStudyError:
                pass  # another machine was faster
            self._find_study()
        if list(self._storage.get_study_directions(self._number)) != directions:
            raise ConfigError(f"the study {stage.study} in {self.where} has other objectives: give it a new name=")
        known = self._storage.get_study_user_attrs(self._number)
        if "prior" not in known | about:  # the machine that made the study died before it wrote them
            about["prior"] = self._prior()
        about |= {"sweep": stage.sweep, "stage": stage.name, "definition": dict(stage.definition)}
        about["objectives"] = [objective.metric for objective in stage.objectives]
        for key, value in about.items():
            if key not in known:
                self._storage.set_study_user_attr(self._number, key, value)
        return made

    def _refuse_other_definitions(self) -> None:
        """A changed stage is another study; two of them under one sweep's name would be taken for each other."""
        for study in self._storage.get_all_studies():
            about = study.user_attrs
            if study.study_name == self.stage.study:
                return  # another machine has made it by now
            if (about.get("sweep"), about.get("stage")) == (self.stage.sweep, self.stage.name):
                lines = changes(about.get("definition", {}), self.stage.definition)
                raise ConfigError(changed_message(self.where, lines))

    def _refuse_other_cells(self) -> None:
        """Seeds are no part of a grid's definition, so that some can be appended; the cells before must be the same."""
        cells = self.stage.cells or ()
        for trial in self._storage.get_all_trials(self._number, deepcopy=False):
            slot, label = slot_of(trial), trial.user_attrs.get("label")
            if slot is not None and slot < len(cells) and label not in (None, cells[slot].label):
                change = f"slot {slot}: {label} -> {cells[slot].label}; seeds can only be appended"
                raise ConfigError(changed_message(self.where, [change]))

    def _find_study(self) -> bool:
        try:
            self._found = self._storage.get_study_id_from_name(self.stage.study)
        except KeyError:
            return False
        return True

    @property
    def _number(self) -> int:
        """The storage's own number of the study."""
        if self._found is None and not self._find_study():
            raise IveditError(f"{self.where} has no study {self.stage.study}: it was not prepared, or deleted")
        return cast(int, self._found)

    def now(self) -> Slots:
        """The slots now. Never cached: others change them."""
        trials = self._storage.get_all_trials(self._number, deepcopy=False)
        return Slots(self.stage, trials, self.retries)

    def _top_up(self, slots: Slots | None = None, *, alone: bool = False) -> bool:
        """Give every slot that has not ended and has no living trial a new one, with the parameters it had.

        ``slots``: how they were a moment ago. ``alone``: nobody else can be filling this study, which saves reading it
        again before each slot. True: something was written.
        """
        slots = slots or self.now()
        superseded, missing = slots.superseded(), slots.missing()
        for trial in superseded:
            self._end(trial._trial_id, TrialState.FAIL, DUPLICATE)
        for slot in missing:
            if not alone:
                slots = self.now()
            if alone or slot in slots.missing():
                self._add(slots, slot)
        return bool(superseded or missing)

    def _add(self, slots: Slots, slot: int) -> int:
        """A waiting trial for a slot; returns the storage's number of it."""
        params = slots.params_for(slot)
        if params is None:
            params = self._first_params(slot)
        about: dict[str, Any] = {"slot": slot}
        if self.stage.cells is not None:
            cell = self.stage.cells[slot]
            about |= {"label": cell.label, "arm": cell.arm, "seed": cell.seed}
        if (before := slots.current(slot)) is not None:
            about["retry_of"] = before.number
        trial = optuna.trial.create_trial(
            state=TrialState.WAITING, user_attrs=about, system_attrs={"fixed_params": dict(params)}
        )
        return self._storage.create_new_trial(self._number, trial)

    def _first_params(self, slot: int) -> Mapping[str, Any]:
        """What a slot has fixed from the start: a point of the grid, a prior trial, or nothing."""
        if self.stage.cells is not None:
            return {}
        if self.stage.sampler.name == "grid":
            points = proposals.grid_points(self.stage)
            if slot >= len(points):
                raise ConfigError(f"n_trials={self.stage.n_trials}, but the grid has {len(points)} points")
            return points[slot]
        prior = self._storage.get_study_user_attrs(self._number).get("prior", ())
        return cast(Mapping[str, Any], prior[slot]) if slot < len(prior) else {}

    def _prior(self) -> list[dict[str, Any]]:
        """Parameters to run first. Kept with the study: another one that they come from may go on."""
        return proposals.prior_params(self.stage, self._storage, self.where)

    # -- writing ------------------------------------------------------------------------------------

    def _note(self, trial_id: int, notes: Mapping[str, Any]) -> bool:
        """Write attributes of a living trial; False when it has ended."""
        try:
            for key, value in notes.items():
                self._storage.set_trial_user_attr(trial_id, key, value)
        except UpdateFinishedTrialError:
            return False
        return True

    def _end(
        self, trial_id: int, state: TrialState, notes: Mapping[str, Any], values: Sequence[float] | None = None
    ) -> bool:
        """End a trial for good, its notes first: an ended one takes none. False when it had ended."""
        if not self._note(trial_id, notes):
            return False
        try:
            if not self._storage.set_trial_state_values(trial_id, state, values):
                raise StorageFailed(f"{self.where} did not take the end of trial {trial_id}")
        except UpdateFinishedTrialError:
            return False
        return True
