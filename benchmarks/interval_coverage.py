"""How often the report's 95% interval holds the truth: simulated ablations with a known difference.

    python benchmarks/interval_coverage.py --out benchmarks/records/interval_coverage.json

Each trial draws a table (seeds, clips) of paired differences whose true mean is 0, as an ablation of a few training
seeds on the same test clips would give it, and asks `ivedit.evaluation.hierarchical.seeds_interval` for its interval.
Regimes differ in where the luck sits: in the seed, in the clip, in neither, in all; with normal, skewed and two-valued
numbers. Beside the report's interval stand the methods it is made from and replaces.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # a clone that is not installed

Table = NDArray[np.float64]
METHODS = ("hierarchical bootstrap", "t over seeds", "wider of these two", "report")


def normal(of_seed: float, of_clip: float, rest: float) -> Callable[[Generator, int, int], Table]:
    """Tables with normal seed effects, clip effects and rest of these standard deviations, in dB."""

    def draw(random: Generator, k: int, n: int) -> Table:
        effects = of_seed * random.standard_normal((k, 1)) + of_clip * random.standard_normal((1, n))
        return effects + rest * random.standard_normal((k, n))

    return draw


def skewed(random: Generator, k: int, n: int) -> Table:
    """A few clips gain much (exponential), the rest has heavy tails (t with 4 degrees of freedom)."""
    clips = 3 * (random.exponential(size=(1, n)) - 1)
    return 0.4 * random.standard_normal((k, 1)) + clips + 2 * random.standard_t(4, size=(k, n))


def two_valued(random: Generator, k: int, n: int) -> Table:
    """Differences of edit success: two arms, each 1 where a clip's quality plus seed, arm and chance is above 0."""
    quality = 2 * random.standard_normal((1, n))
    arms = [
        quality + 0.15 * random.standard_normal((k, 1)) + 0.5 * random.standard_normal((1, n))
        + 0.7 * random.standard_normal((k, n)) > 0
        for _ in range(2)
    ]  # fmt: skip
    return arms[0].astype(float) - arms[1]


REGIMES: dict[str, tuple[str, Callable[[Generator, int, int], Table]]] = {
    "seed and clip": ("seed 0.3, clip 3, rest 3 dB: as the single-seed results suggest", normal(0.3, 3, 3)),
    "seed": ("seed 1.5, clip 1.5, rest 2 dB", normal(1.5, 1.5, 2)),
    "clip": ("seed 0.1, clip 4, rest 2 dB", normal(0.1, 4, 2)),
    "equal shares": ("seed 0.43, clip 3, rest 1 dB: with 5 seeds, both blur the mean alike", normal(0.43, 3, 1)),
    "mostly rest": ("seed 0.2, clip 2, rest 4 dB", normal(0.2, 2, 4)),
    "rest only": ("seed 0, clip 0, rest 3.3 dB", normal(0, 0, 3.3)),
    "skewed": ("exponential clip effects, heavy-tailed rest", skewed),
    "success": ("differences of two-valued success", two_valued),
}


def measure(name: str, seeds: int, clips: int, trials: int, resamples: int) -> dict[str, Any]:
    """Coverage and mean width of each method in one regime."""
    from scipy.stats import t

    from ivedit.evaluation.hierarchical import resample_weights, seeds_interval

    random = np.random.default_rng([seeds, clips, sorted(REGIMES).index(name)])
    hits, width = dict.fromkeys(METHODS, 0), dict.fromkeys(METHODS, 0.0)
    drawn_seeds, drawn_clips = resample_weights(seeds, clips, resamples, 0)
    limit = t.ppf(0.975, seeds - 1)
    for _ in range(trials):
        table = REGIMES[name][1](random, seeds, clips)
        found = seeds_interval(table, resamples=resamples)
        means = table.mean(axis=1)
        drawn = np.einsum("rs,sr->r", drawn_seeds, table @ drawn_clips.T)
        half = limit * means.std(ddof=1) / math.sqrt(seeds)
        bootstrap = tuple(np.quantile(drawn, (0.025, 0.975)))
        over_seeds = (means.mean() - half, means.mean() + half)
        both = (min(bootstrap[0], over_seeds[0]), max(bootstrap[1], over_seeds[1]))
        for method, (low, high) in zip(METHODS, (bootstrap, over_seeds, both, (found.low, found.high)), strict=True):
            hits[method] += low <= 0 <= high
            width[method] += high - low
    return {
        "seeds": seeds, "clips": clips, "regime": name, "trials": trials,
        "coverage": {method: round(hits[method] / trials, 4) for method in METHODS},
        "width": {method: round(float(width[method]) / trials, 4) for method in METHODS},
    }  # fmt: skip


def summarise(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Per number of seeds and over all: the lowest and highest coverage of each method."""
    def ends(chosen: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
        every = {method: [cell["coverage"][method] for cell in chosen] for method in METHODS}
        return {method: [min(values), max(values)] for method, values in every.items()}

    counts = sorted({cell["seeds"] for cell in cells})
    return {**{f"{k} seeds": ends([c for c in cells if c["seeds"] == k]) for k in counts}, "all": ends(cells)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, print a table, write JSON; 1 when the report's interval covers less than 93% or more than 97%."""
    parser = argparse.ArgumentParser(prog="interval_coverage.py", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 8])
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--trials", type=int, default=4000, help="simulated ablations per regime and number of seeds")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    started, cells = time.monotonic(), []
    print("| seeds | regime | " + " | ".join(METHODS) + " |\n|" + "---|" * (len(METHODS) + 2))
    for seeds in given.seeds:
        for name in REGIMES:
            cells.append(measure(name, seeds, given.clips, given.trials, given.resamples))
            shown = (f"{100 * cells[-1]['coverage'][method]:.1f}%" for method in METHODS)
            print(f"| {seeds} | {name} | " + " | ".join(shown) + " |", flush=True)
    summary = summarise(cells)
    low, high = summary["all"]["report"]
    print(f"report: {100 * low:.1f}% to {100 * high:.1f}% ({time.monotonic() - started:.0f} s)")
    if given.out:
        from ivedit.runfolder import write_json_atomic

        given.out.parent.mkdir(parents=True, exist_ok=True)
        about = {name: text for name, (text, _) in REGIMES.items()}
        write_json_atomic(given.out, {
            "benchmark": "interval_coverage", "level": 0.95, "resamples": given.resamples, "regimes": about,
            "cells": cells, "summary": summary,
        })  # fmt: skip
    return 0 if low >= 0.93 and high <= 0.97 else 1


if __name__ == "__main__":
    sys.exit(main())
