"""GPUs and threads of a machine, shared out among workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivedit.errors import ConfigError
from ivedit.sweeping.devices import core_count, list_gpu_ids, share_out
from ivedit.sweeping.spec import Sweep

SWEEP = Sweep("s", "grid", "", Path("s"), (), (), {})


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    def set_to(names: str) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return set_to


@given(count=st.integers(1, 8), per=st.integers(1, 3), sharing=st.integers(1, 3), workers=st.integers(1, 12))
def test_no_gpu_is_shared_by_more_children_than_allowed(count, per, sharing, workers):
    sweep = replace(SWEEP, gpus_per_trial=per, trials_per_gpu=sharing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", ",".join(f"GPU-{i}" for i in range(count)))
        room = count // per * sharing
        if workers > room:
            with pytest.raises(ConfigError, match=f"{count} are free"):
                share_out(sweep, workers, ["auto"])
            return
        places = share_out(sweep, workers, ["auto"])
    used = [name for place in places for name in place.gpus]
    assert len(places) == workers and all(len(set(place.gpus)) == per for place in places)
    assert max(used.count(name) for name in used) == -(-workers // (count // per)) <= sharing


def test_cuda_without_a_gpu_is_refused_and_auto_takes_the_cpu(gpus):
    gpus("")
    with pytest.raises(ConfigError, match=r"train\.accelerator=cuda, but this machine has no free GPU"):
        share_out(SWEEP, 2, ["auto", "cuda"])
    places = share_out(SWEEP, 2, ["auto", "cpu"])
    assert [place.gpus for place in places] == [(), ()]
    assert places[0].environment() == {"OMP_NUM_THREADS": str(max(1, core_count() // 2)), "CUDA_VISIBLE_DEVICES": ""}


def test_children_on_a_cpu_see_no_gpu_and_threads_can_be_set(gpus):
    gpus("0,1")
    (place,) = share_out(replace(SWEEP, threads_per_trial=3), 1, ["cpu"])
    assert (place.gpus, place.threads) == ((), 3)
    assert [p.gpus for p in share_out(SWEEP, 2, ["auto"])] == [("0",), ("1",)]
    gpus("-1")
    assert list_gpu_ids() == []


def test_too_many_workers_are_told_how_many_fit(gpus):
    gpus("0,1,2")
    with pytest.raises(ConfigError, match=r"workers=2 .*need 4 GPUs, and 3 are free; use workers=1, or let more"):
        share_out(replace(SWEEP, gpus_per_trial=2), 2, ["auto"])
