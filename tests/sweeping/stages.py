"""Stages for tests: small grids and searches under names of their own."""

from __future__ import annotations

import secrets
from typing import Any

from ivedit.sweeping.spec import Cell, Choice, Objective, PrunerSpec, Range, SamplerSpec, Stage

SPACE = {"train.lr": Range(1e-4, 1e-2, log=True), "editor.width": Choice((64, 128)), "depth": Range(1, 8, whole=True)}


def search(n_trials: int, sweep: str | None = None, **changed: Any) -> Stage:
    """A search; ``sweep`` None: a name that no storage knows."""
    told: dict[str, Any] = {
        "sweep": sweep or f"s{secrets.token_hex(4)}", "name": "search", "n_trials": n_trials, "cells": None,
        "space": SPACE, "base": ("experiment=quickstart", "seed=0"), "objectives": (Objective("success"),),
        "sampler": SamplerSpec("random"), "pruner": None, "prior": (),
    }  # fmt: skip
    told |= changed
    if "definition" not in told:
        told["definition"] = {"space": {key: value.as_dict() for key, value in told["space"].items()}}
    return Stage(**told)


def grid(n_trials: int, **changed: Any) -> Stage:
    """A grid: arm ``a<i // 2>``, seed ``i % 2``."""
    cells = tuple(
        Cell(f"a{i // 2}-seed{i % 2}", f"a{i // 2}", i % 2, (f"experiment=a{i // 2}", f"seed={i % 2}"))
        for i in range(n_trials)
    )
    definition = {"arms": n_trials // 2}
    return search(n_trials, **{"name": "final", "cells": cells, "space": {}, "definition": definition, **changed})


def two_objectives(n_trials: int, **changed: Any) -> Stage:
    return search(n_trials, objectives=(Objective("success"), Objective("trained_weights", "minimize")), **changed)


def pruned_by_loss(n_trials: int, **changed: Any) -> Stage:
    pruner = PrunerSpec("median", "val/loss", "minimize", {"n_startup_trials": 2, "n_warmup_steps": 2})
    return search(n_trials, pruner=pruner, **changed)
