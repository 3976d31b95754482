"""How many pairs a run would train on: what its own readers find in a local set, without opening an image."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

__all__ = ["with_counted_pairs"]


def with_counted_pairs(cfg: Any) -> tuple[Any, str]:
    """The configuration with the numbers of pairs that the run would find.

    Args:
        cfg: The run's `Config`; it stays as it is.

    Returns:
        A copy in which `data.pairs` and `data.validation_pairs` are no more than a local table, parquet files or tar
        shards hold, and a sentence on where the number comes from: empty for sprites, which are made to order.

    Raises:
        ConfigError: the set cannot be read, as the run would say.
    """
    data = cfg.data
    if data.reader == "sprites":
        return cfg, ""
    if data.reader not in ("folder", "set") or data.streaming:
        return cfg, "as data.pairs says: the set is read while training"
    if data.path is None and data.preset is None:
        return cfg, "as data.pairs says: data.path is not given"
    if data.path is None or not Path(data.path).expanduser().exists():
        return cfg, "as data.pairs says: the set is not on this machine"
    from ivedit.data.record import build_reader

    counted = copy.deepcopy(cfg)
    counted.data.pairs, counted.data.validation_pairs = (len(build_reader(cfg, split)) for split in ("train", "val"))
    few = counted.data.pairs < data.pairs
    return counted, f"all that {data.path} offers of data.pairs={data.pairs}" if few else f"of those in {data.path}"
