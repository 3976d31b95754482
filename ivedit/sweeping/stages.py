"""A sweep's stages in their order: each one's study is opened when the stages before it have ended.

Every process of a sweep, launcher or worker, on any machine, walks the same way: what a later stage runs is computed
from the results that the storage holds, so all come to the same plan and nobody has to tell the others.
"""

from __future__ import annotations

from ivedit.sweeping import plan
from ivedit.sweeping.spec import SlotResult, Stage, Sweep
from ivedit.sweeping.study import StudyStore

__all__ = ["Stages"]


class Stages:
    """The studies of ``sweep`` that are open by now.

    Raises (everywhere): ConfigError or IveditError of `StudyStore` and of the plan, one line each.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.names = plan.stages(sweep)
        self.stores: dict[str, StudyStore] = {}

    @property
    def first(self) -> Stage:
        """The stage that needs no other's results."""
        return self.store(self.names[0]).stage

    def store(self, name: str) -> StudyStore:
        """The study of a stage, made and filled up; the stages before it must have ended."""
        if name not in self.stores:
            stage = plan.build_stage(self.sweep, name, self.results)
            store = StudyStore(
                stage, self.sweep.storage, self.sweep.folder,
                retries=self.sweep.retries, lease_seconds=self.sweep.lease_seconds,
            )  # fmt: skip
            store.prepare()
            self.stores[name] = store
        return self.stores[name]

    def results(self, name: str) -> list[SlotResult]:
        """All slots of a stage."""
        return self.store(name).results()

    def current(self) -> StudyStore | None:
        """The first stage that has not ended; None: all have."""
        for name in self.names:
            store = self.store(name)
            if not store.done():
                return store
        return None

    def so_far(self) -> list[tuple[Stage, list[SlotResult]]]:
        """The stages begun so far, each with all its slots."""
        self.current()  # opens the next one when its turn has come
        return [(store.stage, store.results()) for store in self.stores.values()]
