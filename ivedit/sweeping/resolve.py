"""From ``sweep=NAME key=value ...`` to a checked `Sweep`; all faults of the file and the command line at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ivedit import experiments
from ivedit.config import Config
from ivedit.config.fields import fields
from ivedit.errors import ConfigError
from ivedit.sweeping import spaces
from ivedit.sweeping import structures as read_as
from ivedit.sweeping.parse import Entry, Given, arguments_of, own_keys, read, refuse, written
from ivedit.sweeping.rules import grid_faults, launch_faults, search_faults, setting_faults
from ivedit.sweeping.schema import FOR_KIND, STRUCTURES, SweepConfig
from ivedit.sweeping.spec import Arm, Objective, PrunerSpec, SamplerSpec, Sweep, Tune

__all__ = ["TUNING_SEEDS", "resolve"]

TUNING_SEEDS = (1000,)
"""What tuning uses unless told otherwise: far from the seeds that people list."""

SUCCESS = (Objective("success", "maximize"),)


def resolve(arguments: Sequence[str]) -> Sweep:
    """The sweep that ``python -m ivedit.sweep ARGUMENTS`` asks for.

    Args:
        arguments: ``sweep=NAME`` (a shipped name, a path ending in .yaml, or the folder of a sweep that was started
            before) and ``key=value`` settings over it.

    Raises:
        ConfigError: every problem found, one plain line each.
    """
    named = [item.partition("=")[2] for item in arguments if item.startswith("sweep=")]
    if len(named) != 1 or not named[0]:
        known = ", ".join(experiments.SWEEPS.names())
        bare = next((item for item in arguments if "=" not in item), None)
        hint = f" (write sweep={bare})" if bare and not named else ""
        raise ConfigError(f"sweep=NAME is given {len(named)} times{hint}; give it once: {known}, or ./FILE.yaml")
    given = read(named[0], [item for item in arguments if not item.startswith("sweep=")])
    made = _Sweeping(given)
    sweep = made.grid() if given.values["kind"] == "grid" else made.search()
    refuse(given.problems)
    assert sweep is not None  # without a sweep there is a problem
    return sweep


class _Sweeping:
    """Turns what was given into a `Sweep`; problems gather in ``given.problems``."""

    def __init__(self, given: Given) -> None:
        self.given = given
        self.problems = given.problems
        self.problems += setting_faults(given)
        self.problems += launch_faults(given)
        kind = given.values["kind"]
        for other, keys in FOR_KIND.items():
            if other != kind:
                self.problems += [
                    f"{key}: it is for kind: {other}, and this sweep is a {kind} ({self._who(key)}); leave it out"
                    for key in keys
                    if given.asked(key)
                ]
        self.settings = arguments_of(given.settings)
        self.objectives = self._read("objectives", read_as.objectives, SUCCESS)

    def _who(self, key: str) -> str:
        names = [key, *(name for name in (*self.given.sources, *self.given.structures) if name.startswith(f"{key}."))]
        return next((source for name in names if (source := self.given.source(name)) != "default"), "default")

    def _read(self, key: str, function: Callable[[str, Entry, list[str]], Any], default: Any) -> Any:
        entry = self.given.structures.get(key)
        if entry is None or (entry.value is None and default is not None):
            return default
        return function(key, entry, self.problems)

    def grid(self) -> Sweep | None:
        given = self.given
        if "arms" not in given.structures:
            where = experiments.shown(given.file)
            self.problems.append(f"arms: a grid needs them ({where}); write arms: [imvideoedit]")
            return None
        arms = read_as.arms(given.structures["arms"], given.values["experiment"], given.file, self.problems)
        seeds = self._read("seeds", read_as.seeds, (0,))
        tune = self._tune()
        names = [arm.name for arm in arms]
        self._keep_claims_about(names)
        claims = self._read("claims", lambda _, entry, problems: read_as.claims(entry, names, problems), ())
        faults, config = grid_faults(given, self.settings, arms, seeds, tune, self.objectives)
        self.problems += faults
        if config is None:
            return None
        return self._sweep(config, arms=arms, seeds=seeds, tune=tune, claims=claims)

    def _keep_claims_about(self, names: list[str]) -> None:
        """Arms chosen on the command line leave the file's claims about the others without their subject."""
        given = self.given
        claims = given.structures.get("claims", Entry(None, ""))
        if given.structures["arms"].text is None or claims.text is not None or not isinstance(claims.value, list):
            return
        kept = [c for c in claims.value if not isinstance(c, dict) or {c.get("better"), c.get("than")} <= {*names}]
        given.structures["claims"] = Entry(kept, claims.source)

    def _tune(self) -> Tune | None:
        if not any(key.startswith("tune.") for key in self.given.structures):
            return None
        if "tune.space" not in self.given.structures:
            self.problems.append(f"tune.space is missing ({self._who('tune')}); write {{train.lr: [1e-3, 2e-3]}}")
            return None
        space = self._read("tune.space", spaces.values_of, None)
        objective = self._read("tune.objective", read_as.objectives, self.objectives[:1])
        if len(objective) > 1:
            self.problems.append(f"tune.objective: one metric decides ({self._who('tune.objective')}); name one")
        settings = self._read("tune.settings", read_as.settings, ("evaluation.split=val",))
        seeds = self._read("tune.seeds", read_as.seeds, TUNING_SEEDS)
        return Tune(space, seeds, settings, objective[0]) if space and objective and seeds else None

    def search(self) -> Sweep | None:
        given, value = self.given, self.given.values
        if "space" not in given.structures:
            self.problems.append(
                f"space: a search needs it ({experiments.shown(given.file)}); "
                "write space: {train.lr: {low: 1e-4, high: 1e-2, log: true}}"
            )
            return None
        try:
            first = f"experiment={read_as.experiment_file(value['experiment'], given.file)}"
        except ConfigError as error:
            self.problems += [f"experiment: {problem} ({given.source('experiment')})" for problem in error.problems]
            return None
        before = len(self.problems)
        space = spaces.space(given.structures["space"], self.problems)
        varied = space if len(self.problems) == before else None  # what a faulty space holds is not known
        prior = self._read("prior", lambda _, entry, problems: spaces.prior(entry, varied, problems), ())
        sampler = SamplerSpec(
            value["sampler.name"], value["sampler.seed"], self._read("sampler.options", spaces.options, {})
        )
        pruner = None
        if value["pruner.name"] != "none":
            pruner = PrunerSpec(
                value["pruner.name"], value["pruner.metric"], value["pruner.direction"],
                self._read("pruner.options", spaces.options, {}),
            )  # fmt: skip
        value["experiment"] = first.partition("=")[2]
        base = (first, *self.settings)
        faults, config = search_faults(given, base, space, sampler, pruner, self.objectives, prior)
        self.problems += faults
        if config is None or not space:
            return None
        n_trials = value["n_trials"]
        if n_trials is None:
            n_trials = 1
            for item in space.values():
                n_trials *= len(item.values() or (None,))
        return self._sweep(
            config, settings=base, space=space, prior=prior, sampler=sampler, pruner=pruner, n_trials=n_trials
        )

    def _sweep(self, config: Config, **parts: Any) -> Sweep:
        value = self.given.values
        plain = {
            key: value[key]
            for key in (
                "name", "kind", "summary", "storage", "workers", "gpus_per_trial", "trials_per_gpu",
                "threads_per_trial", "trial_minutes", "retries", "lease_seconds", "keep_checkpoints", "launcher",
                "slurm",
            )
        }  # fmt: skip
        whole = {
            "settings": self.settings,
            "objectives": self.objectives,
            "definition": self._content(parts.get("arms", ())),
            "folder": Path(value["output_dir"]).expanduser() / value["name"],
            "tracking_kind": config.tracking.kind,
            "tracking_uri": config.tracking.uri,
            "experiment": config.tracking.experiment,
        }
        return Sweep(**{**plain, **whole, **parts})

    def _content(self, arms: tuple[Arm, ...]) -> dict[str, Any]:
        """The sweep as a file would write it: what was given, in the order in which to read it.

        Experiments are written as the run takes them, because this file stands in another folder than the first; where
        it stands says what ``output_dir`` is.
        """
        given = self.given
        if arms:
            given.structures["arms"] = Entry([{arm.name: list(arm.settings)} for arm in arms], given.source("arms"))
        settings = {key: written(key, entry) for key, entry in given.settings.items()}
        content: dict[str, Any] = {}
        for key in own_keys():
            if key == "settings" and settings:
                content[key] = settings
            elif key in STRUCTURES and key in given.structures:
                _put(content, key, given.structures[key].value)
            elif (key in given.sources and key != "output_dir") or key in ("name", "kind"):
                _put(content, key, given.values[key])
        return {key: value for key, value in content.items() if value is not None or key in fields(SweepConfig)}


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    group, _, name = key.partition(".")
    if name:
        content.setdefault(group, {})[name] = value
    else:
        content[key] = value
