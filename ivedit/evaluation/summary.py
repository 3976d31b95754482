"""From values per clip to the numbers of a table: groups of clips, estimates with intervals, paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ivedit.evaluation.statistics import Estimate, mean_interval, paired_difference, share_interval
from ivedit.sprites.vocabulary import OPERATIONS

__all__ = ["HEADLINE", "differences", "estimate", "grouped", "in_order", "jsonable", "operation_groups"]

HEADLINE = ("success", "edited_psnr", "kept_psnr")
"""The metrics that are also given per operation and against the controls."""

PAIRED_CONTROLS = ("source_copy", "frozen", "vae_ceiling")


def estimate(name: str, values: Any, resamples: int) -> Estimate:
    """The mean of ``values`` (one per clip, NaN: none) with its interval; a share for ``success``."""
    numbers = np.asarray(values, np.float64)
    return share_interval(numbers) if name == "success" else mean_interval(numbers, resamples=resamples)


def operation_groups(operations: Sequence[str], needs_motion: Sequence[bool]) -> dict[str, list[int]]:
    """Row numbers of each operation, in order of appearance, and of the edits that need new motion, if any."""
    groups = {kind: [i for i, name in enumerate(operations) if name == kind] for kind in dict.fromkeys(operations)}
    moving = [i for i, flag in enumerate(needs_motion) if flag]
    return {**groups, **({"needs_motion": moving} if moving else {})}


def in_order(groups: Iterable[str]) -> list[str]:
    """Operations in the world's own order, then the flagged group."""
    found = set(groups)
    return [name for name in (*OPERATIONS, "needs_motion") if name in found]


def grouped(values: Mapping[str, Tensor], groups: Mapping[str, list[int]], resamples: int) -> dict[str, dict[str, Any]]:
    """{group: {metric: estimate}} of the headline metrics that ``values`` holds."""
    return {
        group: {name: estimate(name, values[name][rows], resamples).as_dict() for name in HEADLINE if name in values}
        for group, rows in groups.items()
    }


def differences(rows: Mapping[str, Mapping[str, Tensor]], resamples: int) -> dict[str, dict[str, dict[str, Any]]]:
    """{row: {control: {metric: paired difference}}}, row minus control, for the controls that are there."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, values in rows.items():
        for control in PAIRED_CONTROLS:
            if control in rows and control != name:
                found.setdefault(name, {})[control] = {
                    metric: paired_difference(
                        values[metric].double().numpy(), rows[control][metric].double().numpy(), resamples=resamples
                    ).as_dict()
                    for metric in HEADLINE
                }
    return found


def jsonable(values: Any) -> Any:
    """Tensors and arrays as nested lists, NaN (no value) as None."""
    if isinstance(values, Mapping):
        return {key: jsonable(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [jsonable(value) for value in values]
    if hasattr(values, "tolist"):
        return jsonable(values.tolist())
    if isinstance(values, float):
        return None if values != values else round(values, 6)
    return values
