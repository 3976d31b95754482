"""Training on batches of several picture sizes: resuming, the captured path, counted FLOPs; all on a tiny backbone."""

import logging

import pytest
import torch

from ivedit.planning.simulate import Model
from ivedit.training import EditModule, read_checkpoint
from ivedit.training.captured import StaticStep
from ivedit.training.checkpoint import LAST
from ivedit.training.flops import count_flops
from tests.backbone.tiny import tiny_backbone
from tests.data.conftest import PhotoFolder
from tests.planning.test_simulate import configs_of
from tests.training.edits import edit_config, run_edit
from tests.training.test_edit_training import CrashAt

SIZES = ["16x32", "32x16", "16x16"]


@pytest.fixture
def cfg(tmp_path):
    """27 photographs (24 for training), in turn wide, tall and square: 11 batches an epoch."""
    photos = PhotoFolder(tmp_path / "photos", 27, (96, 48), (40, 80), (60, 60))
    cfg = edit_config(epochs=1, batch_size=2)
    cfg.data = photos.config(buckets=SIZES, validation_pairs=3, pairs=24, null_edits=0.1).data
    return cfg


def _weights(folder):
    return read_checkpoint(folder / "checkpoints" / LAST)["state_dict"]


def test_a_run_of_three_sizes_cut_in_the_middle_of_an_epoch_equals_the_whole_one(tmp_path, cfg, monkeypatch):
    whole, editor, _ = run_edit(tmp_path / "whole", cfg)
    with monkeypatch.context() as patch:
        patch.setattr(EditModule, "configure_callbacks", lambda self: [CrashAt(5)])
        with pytest.raises(RuntimeError, match="crash"):
            run_edit(tmp_path / "cut", cfg)
    resumed, again, _ = run_edit(tmp_path / "cut", cfg)
    assert resumed.steps == whole.steps == 11 and resumed.val_loss == whole.val_loss is not None
    first, second = _weights(tmp_path / "whole"), _weights(tmp_path / "cut")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in editor.state_dict().items())


def test_the_captured_path_has_a_step_for_each_size_and_trains_to_the_same_weights(tmp_path, cfg, monkeypatch, caplog):
    # On a CPU the static steps run their buffers eagerly: everything but the graphs themselves.
    cfg.train.accumulate = 2
    _, eager, _ = run_edit(tmp_path / "eager", cfg)
    monkeypatch.setattr(EditModule, "capture_mode", lambda self: (True, "test"))
    with caplog.at_level(logging.INFO, "ivedit"):
        _, static, _ = run_edit(tmp_path / "static", cfg)
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(static.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    captured = [line.split() for line in caplog.messages if line.startswith("captured step")]
    assert [line[2] for line in captured] == ["1:", "2:", "3:"] and len({line[-2] for line in captured}) == 3


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_steps_of_two_shapes_share_their_buffers_and_each_gives_its_own_gradients(device):
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.GELU(), torch.nn.Linear(64, 2)).to(device)
    parameters = list(layer.parameters())

    def losses(inputs):
        return (layer(inputs["x"]) - inputs["y"]).square().mean(1)

    place = torch.device(device)
    first = StaticStep(losses, parameters, place, graph=device == "cuda")
    steps = {5: first}
    for rows in (5, 9, 5, 3, 9, 3, 5):
        batch = {"x": torch.randn(rows, 4), "y": torch.randn(rows, 2)}
        step = steps.setdefault(
            rows, StaticStep(losses, parameters, place, graph=device == "cuda", share=None if rows == 5 else first)
        )
        found, gradients = step(batch)
        expected = losses({name: value.to(device) for name, value in batch.items()})
        torch.testing.assert_close(found, expected.detach())
        torch.testing.assert_close(gradients, list(torch.autograd.grad(expected.mean(), parameters)))
        del expected  # what lives of an eager graph ties its stream to the next capture
        assert all(own is other for own, other in zip(gradients, first.gradients, strict=True))


def test_counted_flops_are_the_mean_over_the_sizes(cfg):
    backbone = tiny_backbone()

    def step(*sizes):
        cfg.data.buckets = list(sizes)
        return count_flops(cfg, backbone)["training_step"]

    wide, tall, square = step("16x32"), step("32x16"), step("16x16")
    assert wide == tall > square
    assert step(*SIZES) == pytest.approx((wide + tall + square) / 3, rel=1e-9)
    cfg.data.buckets, cfg.data.height, cfg.data.width = [], 16, 16
    assert count_flops(cfg, backbone)["training_step"] == square


def test_a_plan_is_made_for_the_largest_size(cfg):
    backbone = tiny_backbone(blocks=2)
    cfg.data.buckets = ["16x16", "48x32", "32x16"]
    tensors = Model(cfg, configs_of(backbone), blocks=2, gpu=False).tensors(3, 1)
    factor = backbone.spec.space_factor
    assert tensors["source"].shape == (3, backbone.spec.latent_channels, 1, 48 // factor, 32 // factor)
    assert tensors["noise"].shape == tensors["source"].shape
