"""The benchmark of the data path times arms that give the same pairs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def test_the_arms_that_are_compared_give_the_same_pairs(tmp_path: Path, monkeypatch):
    spec = importlib.util.spec_from_file_location("data_path", ROOT / "benchmarks" / "data_path.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    monkeypatch.setattr(bench, "HEIGHT", 32)
    monkeypatch.setattr(bench, "WIDTH", 48)
    assert bench.write_pairs(tmp_path / "pairs.parquet", 10, 96) > 1000
    found = {}
    for shuffled in (False, True):
        arms = {
            "ours": bench.ours(tmp_path, 9, 0, shuffled),
            "by hand": bench.by_hand(tmp_path, 9, 0, shuffled, bench.with_ours),
            "pillow": bench.by_hand(tmp_path, 9, 0, shuffled, bench.with_pillow),
        }
        for name, batches in arms.items():
            source, target = (torch.cat(parts) for parts in zip(*batches, strict=True))
            assert source.shape == target.shape == (9, 3, 32, 48)
            found[name, shuffled] = source[source.flatten(1).double().mean(1).argsort()]  # whatever the order
    # Which pair is held out is the reader's own choice, so at least eight of nine are the same.
    for shuffled in (False, True):
        ours, theirs, pillow = (found[name, shuffled].flatten(1) for name in arms)
        same = (ours[:, None] == theirs[None]).all(-1)
        assert same.any(1).sum() >= 8
        assert (theirs.float() - pillow.float()).abs().mean() < 3  # Pillow's filter reaches over the crop's edge
