"""When a step is compiled, and what a compiler that does not work leads to."""

from __future__ import annotations

import gc
import logging

import pytest
import torch
from torch._inductor import config as inductor

from ivedit.backbone.compiled import compiled as compile_unit
from ivedit.backbone.compiled import sampling_compiles
from ivedit.config.schema import Config
from ivedit.errors import IveditError
from ivedit.training import compiled
from ivedit.training.compiled import StepCompiler
from tests.backbone.tiny import tiny_backbone
from tests.training.edits import edit_config, run_edit


def chosen(setting: str, device: str) -> bool:
    cfg = Config()
    cfg.train.compile = setting
    return StepCompiler(cfg, tiny_backbone(blocks=1), torch.device(device)).active


def test_compiling_is_chosen_for_a_large_backbone_on_a_gpu(monkeypatch):
    assert chosen("on", "cpu")
    assert not any(chosen("auto", device) for device in ("cpu", "cuda"))  # a small backbone
    monkeypatch.setattr("ivedit.backbone.compiled.LARGE", 1)
    assert chosen("auto", "cuda")
    assert not chosen("auto", "cpu")
    assert not chosen("off", "cuda")


def test_sampling_is_compiled_where_it_is_asked_for():
    assert sampling_compiles("on", tiny_backbone(blocks=1))
    assert not any(sampling_compiles(setting, tiny_backbone(blocks=1)) for setting in ("auto", "off"))


def test_a_block_compiled_in_ddp_is_one_graph_whatever_the_buckets_of_gradients(tmp_path):
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(400, 400) for _ in range(6))

        def forward(self, x):
            return compile_unit(run_layers, graphs)(self.layers, x)

    found = []

    def graphs(graph, inputs):
        found.append(graph)
        return graph.forward

    def run_layers(layers, x):
        for layer in layers:
            x = layer(x)
        return x

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        ddp = torch.nn.parallel.DistributedDataParallel(Block(), bucket_cap_mb=1)
        ddp(torch.randn(2, 400)).sum().backward()
        assert len(found) == 1 and all(p.grad is not None for p in ddp.parameters())
        # Before the group: were it the last to hold it, its end would wait for the group's threads with the GIL held.
        del ddp
        gc.collect()
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture
def no_compiler():
    """torch finds no C++ compiler, and nothing that was compiled before."""
    torch._dynamo.reset()
    with inductor.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        yield
    torch._dynamo.reset()


def test_asked_for_and_impossible_is_told(tmp_path, no_compiler):
    with pytest.raises(IveditError, match=r"train.compile=on, but the blocks cannot be compiled: .*compiler"):
        run_edit(tmp_path, edit_config(epochs=1, compile="on"))


def test_chosen_by_itself_and_impossible_goes_on_without(tmp_path, no_compiler, monkeypatch, caplog):
    expected, _, _ = run_edit(tmp_path / "plain", edit_config(epochs=1))
    monkeypatch.setattr(compiled, "_choice", lambda setting, *_: (setting == "auto", "as on a GPU"))
    with caplog.at_level(logging.INFO, logger="ivedit.training"):
        outcome, _, _ = run_edit(tmp_path / "fallen_back", edit_config(epochs=1, compile="auto"))
    assert outcome.steps == expected.steps and outcome.val_loss == expected.val_loss
    assert "training goes on without" in caplog.text


@pytest.mark.gpu
def test_compiled_and_captured_steps_learn_as_eager_ones_do(tmp_path):
    """Heads of 24 channels read padded text through the variable-length kernel here, forward and backward."""

    class Losses:
        def __init__(self):
            self.rows = {}

        def log_metrics(self, values, step):
            self.rows.setdefault(step, {}).update(values)

        def log_params(self, values):
            pass

    found = {}
    for compile, capture in (("off", "off"), ("on", "off"), ("on", "on")):
        losses = Losses()
        cfg = edit_config(epochs=1, log_every=1, accelerator="cuda", compile=compile, capture=capture)
        run_edit(tmp_path / f"{compile}-{capture}", cfg, tracker=losses)
        found[compile, capture] = [losses.rows[step]["train/loss"] for step in range(1, 7)]
    for other in (("on", "off"), ("on", "on")):
        assert found[other] == pytest.approx(found["off", "off"], rel=0.02)
