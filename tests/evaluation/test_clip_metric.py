"""Metric states: streaming, merging over processes, pairing by clip number, plugins, the generated table."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ivedit.config.schema import EvaluationConfig
from ivedit.errors import ConfigError, IveditError
from ivedit.evaluation.metrics import METRICS, ClipMetric, Reference, RegionPSNR, build_metrics, register_metric
from ivedit.evaluation.metrics.table import metric_table


def batch(numbers):
    generator = torch.Generator().manual_seed(7)
    source = torch.rand(10, 3, 3, 16, 16, generator=generator)[numbers]
    target = torch.rand(10, 3, 3, 16, 16, generator=generator)[numbers]
    edited = torch.rand(10, 3, 3, 16, 16, generator=generator)[numbers]
    mask = torch.zeros(len(numbers), 3, 1, 16, 16)
    mask[..., :7] = 1
    return edited, Reference(source, target, mask, torch.tensor(numbers))


def test_batches_in_any_order_give_the_same_values_as_one_batch():
    whole, parts = build_metrics(EvaluationConfig()), build_metrics(EvaluationConfig())
    for name in whole:
        whole[name].update(*batch(list(range(10))))
        for numbers in ([7, 2], [9, 8, 0, 1], [3, 4, 5, 6]):
            parts[name].update(*batch(numbers))
        torch.testing.assert_close(whole[name].per_clip(), parts[name].per_clip(), equal_nan=True)
        torch.testing.assert_close(whole[name].compute(), parts[name].compute(), equal_nan=True)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 2, 2)])
def test_a_measure_without_one_value_per_clip_is_refused_by_name(shape):
    class Mean(ClipMetric):
        def measure(self, edited, reference):
            return edited.mean().expand(shape)

    with pytest.raises(IveditError, match=r"Mean.measure gave values of shape .* for 3 clips"):
        Mean().update(*batch([0, 1, 2]))


def test_a_clip_that_a_distributed_sampler_repeats_counts_once():
    metric = RegionPSNR("edited")
    metric.update(*batch([0, 1, 2]))
    metric.update(*batch([2, 0]))
    assert metric.per_clip()[0].tolist() == [0, 1, 2]


def test_merging_two_states_equals_one_process():
    one, left, right = RegionPSNR("edited"), RegionPSNR("edited"), RegionPSNR("edited")
    one.update(*batch(list(range(10))))
    left.update(*batch([0, 3, 4]))
    right.update(*batch([1, 2, 5, 6, 7, 8, 9]))
    left.merge_state(right)
    torch.testing.assert_close(left.per_clip(), one.per_clip())


def _rank(rank, file, out):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    metric = RegionPSNR("edited")
    for numbers in ([0, 2, 4], [6])[rank:] if rank else ([0, 2, 4], [6], [8, 1]):
        metric.update(*batch(numbers))
    if rank:
        metric.update(*batch([3, 5, 7, 9]))
    mean = metric.compute()  # gathers
    with metric.sync_context():
        clips, values = metric.per_clip()
    torch.save((mean, clips, values), f"{out}/{rank}.pt")
    dist.destroy_process_group()


def test_two_real_processes_gather_to_the_values_of_one(tmp_path):
    # forked: a process that has to import everything anew takes a hundred times as long as what it is to do
    mp.start_processes(_rank, args=(tmp_path / "store", str(tmp_path)), nprocs=2, start_method="fork")
    one = RegionPSNR("edited")
    one.update(*batch(list(range(10))))
    for rank in range(2):
        mean, clips, values = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close((clips, values), one.per_clip())
        torch.testing.assert_close(mean, one.compute())


def test_a_metric_starts_empty_and_resets():
    metric = RegionPSNR("edited")
    assert metric.per_clip()[0].tolist() == []
    metric.update(*batch([1]))
    metric.reset()
    assert metric.per_clip()[0].tolist() == []


def test_a_plugin_adds_a_metric_that_is_built_with_the_others():
    class Brightness(ClipMetric):
        def measure(self, edited, reference):
            return edited.mean(dim=(1, 2, 3, 4))

    add = register_metric(
        "test_brightness", label="brightness", meaning="Mean.", range="0 to 1", better="higher", source="mean"
    )
    try:
        add(lambda evaluation: Brightness())
        metrics = build_metrics(EvaluationConfig())
        metrics["test_brightness"].update(*batch([0]))
        assert 0.4 < metrics["test_brightness"].compute() < 0.6
    finally:
        METRICS._objects.pop("test_brightness"), METRICS._info.pop("test_brightness")
    with pytest.raises(ConfigError, match="edited_psnr"):
        METRICS.get("edited_psn")
    with pytest.raises(ValueError, match="higher, lower"):
        register_metric("x", label="", meaning="", range="", better="up", source="")


def test_the_metric_table_in_the_docs_is_current():
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert metric_table() == page.read_text(encoding="utf-8"), (
        "docs/metrics.md is stale: python -m ivedit.evaluation.metrics.table > docs/metrics.md"
    )
