"""Bring a study in line with its run folders, which are the truth: what a dead worker could not tell any more.

An ended Optuna trial cannot be changed. Where a run folder says another value than its complete trial (somebody
evaluated it again), the folder's value is kept as a note of the study, and every table uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from ivedit.errors import ConfigError
from ivedit.sweeping.claims import Outcome, Worker
from ivedit.sweeping.slots import lease_of

if TYPE_CHECKING:
    from ivedit.sweeping.study import StudyStore

__all__ = ["reconcile"]


def reconcile(store: StudyStore, read_result: Callable[[Path], Outcome | None]) -> list[str]:
    """See `ivedit.sweeping.study.StudyStore.reconcile`."""
    done: list[str] = []
    for slot in range(store.stage.n_trials):
        slots = store.corrected()
        trial = slots.current(slot)
        folder = store.runs / store.stage.folder_name(slot)
        if trial is None:
            continue
        if _unknown(store, trial, folder, attempts=len(slots.attempts(slot))):
            raise ConfigError(
                f"{folder} is there, but {store.where} knows of no attempt at this slot, so its parameters are not "
                "known: restore the storage, or give the sweep a new name="
            )
        outcome = read_result(folder)
        if outcome is None or outcome.state == "FAIL":
            continue
        if trial.state == TrialState.COMPLETE:
            told = slots.values(trial)
            if outcome.state == "COMPLETE" and outcome.values != told:
                store.correct(trial.number, outcome.values or ())
                done.append(f"{folder.name}: {told} in the study, {outcome.values} in its run folder, which counts")
        elif trial.state != TrialState.PRUNED and _adopt(store, slot, trial, outcome):
            done.append(f"{folder.name}: {outcome.state}, which its worker did not live to tell")
    done += [f"{store.stage.folder_name(lost.slot)}: {lost.reason}; it waits again" for lost in store.reclaim_expired()]
    return done


def _adopt(store: StudyStore, slot: int, trial: FrozenTrial, outcome: Outcome) -> bool:
    """End a slot by its run folder; False when somebody else works on it or ended it."""
    if trial.state == TrialState.RUNNING:
        return store.given_up(trial) and store.end_as(trial, outcome)
    claim = store.claim_slot(slot, Worker.here("reconcile"))
    return claim is not None and store.finish(claim, outcome.state, outcome.values, outcome.reason, outcome.facts)


def _unknown(store: StudyStore, trial: FrozenTrial, folder: Path, attempts: int) -> bool:
    """A run folder of a search whose drawn parameters are lost with the storage that knew them."""
    drawn = store.stage.cells is None and not set(trial.system_attrs.get("fixed_params", {})) >= set(store.stage.space)
    untouched = trial.state == TrialState.WAITING and attempts == 1 and lease_of(trial) is None
    return drawn and untouched and (folder / "config.yaml").is_file()
