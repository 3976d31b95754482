"""Training the edit modules on a tiny random backbone: real sprites, real data, real editor."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from ivedit.data.text import TextStates
from ivedit.editor import build_editor, read_editor_header
from ivedit.errors import ConfigError, IveditError
from ivedit.flow import training_draws
from ivedit.training import EditModule, reached_step, read_checkpoint
from ivedit.training.captured import StaticStep, laid_out
from ivedit.training.checkpoint import LAST
from ivedit.training.module import training_shift
from ivedit.training.run import total_steps
from tests.backbone.tiny import tiny_backbone
from tests.training.edits import edit_config, run_edit

SCRIPT = Path(__file__).parent / "edits.py"


class Records:
    """A tracker that keeps what it is told."""

    def __init__(self):
        self.rows, self.params = {}, {}

    def log_metrics(self, values, step):
        self.rows.setdefault(step, {}).update(values)

    def log_params(self, values):
        self.params.update(values)


class CrashAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step >= self.step:
            raise RuntimeError("crash")


@pytest.fixture
def crash(monkeypatch):
    """Makes the next runs crash after so many steps; None: not."""

    def after(step):
        callbacks = [] if step is None else [CrashAt(step)]
        monkeypatch.setattr(EditModule, "configure_callbacks", lambda self: callbacks)

    return after


def tiny_batch(backbone, count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    source, target = torch.randn(2, count, 4, 1, 4, 4, generator=generator)
    text = backbone.encode_text(["make the red circle blue", "remove the star"] * (count // 2))
    empty = backbone.encode_text([""] * count)
    return {"source": source, "target": target, "text_target": text, "text_gate": text, "text_source": empty}


def loss_of(module, batch, step=0, draws=1):
    r, seeds = training_draws(0, step, 0, 0, len(batch["target"]), draws)
    return module.sample_losses(module.step_tensors(batch, r, seeds, shift=3.0, kind="uniform"))


def test_one_batch_can_be_learned_by_heart():
    backbone = tiny_backbone(blocks=2)
    cfg = edit_config(lr=1e-2)
    module = EditModule(backbone, build_editor(cfg.editor, backbone), cfg, max_steps=60)
    batch = tiny_batch(backbone)
    optimizer = module.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = loss_of(module, batch).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_training_lowers_the_validation_loss_and_exports_the_average(tmp_path):
    tracker = Records()
    outcome, editor, _ = run_edit(tmp_path, edit_config(epochs=6, validate_every=6), tracker=tracker)
    assert outcome.steps == 36 and outcome.stopped_early is None
    assert outcome.val_loss == tracker.rows[36]["val/loss"] < 0.7 * tracker.rows[6]["val/loss"]
    assert any(name.startswith("train/loss_sigma/") for name in tracker.rows[36])
    assert {"train/grad_norm", "train/lr", "train/pairs_per_second"} <= tracker.rows[8].keys()
    assert tracker.params["trained_parameters"] == sum(p.numel() for p in editor.parameters())
    exported = load_file(outcome.editor_file)
    average = read_checkpoint(tmp_path / "checkpoints" / LAST)["callbacks"]["EmaCallback"]["average"]
    for name, value in editor.state_dict().items():
        assert torch.equal(value, exported[name]) and torch.equal(value, average[f"editor.{name}"])


def test_a_checkpoint_holds_the_editor_and_nothing_of_the_backbone(tmp_path):
    _, editor, _ = run_edit(tmp_path, edit_config(epochs=1))
    checkpoint = read_checkpoint(tmp_path / "checkpoints" / LAST)
    assert set(checkpoint["state_dict"]) == {f"editor.{name}" for name in editor.state_dict()}
    weights = sum(p.numel() * 4 for p in editor.parameters())
    # Weights, average and the optimiser's two moments, and little else.
    assert (tmp_path / "checkpoints" / LAST).stat().st_size < 4.4 * weights + 300_000


@pytest.mark.parametrize(("accumulate", "after"), [(1, 4), (1, 8), (2, 4)])
def test_a_crash_in_the_middle_of_an_epoch_changes_nothing(tmp_path, crash, accumulate, after):
    # 6 micro-batches an epoch, a checkpoint every 3 steps.
    cfg = edit_config(epochs=2 * accumulate, accumulate=accumulate)
    whole, whole_editor, _ = run_edit(tmp_path / "whole", cfg)
    crash(after)
    with pytest.raises(RuntimeError, match="crash"):
        run_edit(tmp_path / "cut", cfg)
    crash(None)
    assert reached_step(tmp_path / "cut/checkpoints") == after // 3 * 3
    resumed, editor, _ = run_edit(tmp_path / "cut", cfg)
    assert resumed.steps == whole.steps == 12 and resumed.val_loss == whole.val_loss
    a, b = (read_checkpoint(tmp_path / d / "checkpoints" / LAST) for d in ("whole", "cut"))
    for name in a["state_dict"]:
        assert torch.equal(a["state_dict"][name], b["state_dict"][name])
    for name, value in whole_editor.state_dict().items():
        assert torch.equal(value, editor.state_dict()[name])


def test_micro_batches_make_the_same_losses_and_gradients_as_one_batch(tmp_path):
    rows = []
    for batch, accumulate in ((8, 1), (4, 2), (2, 4)):
        tracker = Records()
        cfg = edit_config(batch_size=batch, accumulate=accumulate, epochs=1, log_every=1)
        run_edit(tmp_path / str(batch), cfg, tracker=tracker)
        rows.append(tracker.rows)
    for other in rows[1:]:
        for step in (1, 2, 3):
            for name in ("train/loss", "train/grad_norm"):
                assert other[step][name] == pytest.approx(rows[0][step][name], rel=2e-3)
        assert other[3]["val/loss"] == pytest.approx(rows[0][3]["val/loss"], rel=2e-3)


def test_several_draws_of_a_pair_share_one_source_pass_and_are_the_mean_of_single_ones(monkeypatch):
    backbone = tiny_backbone(blocks=2)
    cfg = edit_config()
    cfg.flow.draws_per_pair = 3
    editor = build_editor(cfg.editor, backbone)
    with torch.no_grad():
        for p in editor.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    module = EditModule(backbone, editor, cfg, max_steps=1)
    batch = tiny_batch(backbone)
    passes = backbone.source_passes
    together = loss_of(module, batch, draws=3)
    assert backbone.source_passes == passes + 1 and together.shape == (12,)
    r, seeds = training_draws(0, 0, 0, 0, 4, 3)
    for d in range(3):
        alone = module.sample_losses(
            module.step_tensors(batch, r[d::3], seeds[d::3], shift=3.0, kind="uniform")
        )
        torch.testing.assert_close(alone, together[d::3], rtol=1e-4, atol=1e-5)


def test_the_captured_path_trains_to_the_same_weights_as_the_eager_one(tmp_path, monkeypatch):
    # On a CPU the static step runs its buffers eagerly: everything but the graph itself.
    for accumulate in (1, 2):
        cfg = edit_config(epochs=accumulate, accumulate=accumulate)
        with monkeypatch.context() as patch:
            _, eager, _ = run_edit(tmp_path / f"eager{accumulate}", cfg)
            patch.setattr(EditModule, "capture_mode", lambda self: (True, "test"))
            _, static, _ = run_edit(tmp_path / f"static{accumulate}", cfg)
        for name, value in eager.state_dict().items():
            torch.testing.assert_close(static.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_captured_step_lie_in_memory_as_their_weights_do():
    backbone = tiny_backbone(blocks=2)
    module = EditModule(backbone, build_editor({"width": 24}, backbone), edit_config(), max_steps=1)
    weights = module.trained_parameters()
    found = torch.autograd.grad(loss_of(module, tiny_batch(backbone)).mean(), weights)
    assert any(g.stride() != w.stride() for g, w in zip(found, weights, strict=True))  # slices of joint products
    ours = laid_out(found, weights)
    assert all(g.stride() == w.stride() for g, w in zip(ours, weights, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ours, found, strict=True))


def test_capture_on_without_a_gpu_is_refused_with_the_reason(tmp_path):
    with pytest.raises(IveditError, match=r"train\.capture=on is impossible: the device is cpu"):
        run_edit(tmp_path, edit_config(epochs=1, capture="on"))


@pytest.mark.parametrize(("capture", "words"), [("auto", "goes on eagerly"), ("on", "cannot be captured: no graph")])
def test_a_capture_that_fails_is_never_silent(tmp_path, monkeypatch, caplog, capture, words):
    class Broken:
        def __init__(self, *arguments, **more):
            pass

        def __call__(self, tensors):
            raise RuntimeError("no graph")

    monkeypatch.setattr("ivedit.training.captured.StaticStep", Broken)
    monkeypatch.setattr(EditModule, "capture_mode", lambda self: (True, "test"))
    if capture == "on":
        with pytest.raises(IveditError, match=words):
            run_edit(tmp_path, edit_config(epochs=1, capture=capture))
    else:
        outcome, _, _ = run_edit(tmp_path, edit_config(epochs=1, capture=capture))
        assert outcome.steps == 6 and words in caplog.text


def test_a_capture_that_fails_gives_the_memory_of_those_before_it_back(monkeypatch, caplog):
    """What graphs hold is lost to eager steps: a second size that does not fit beside the first would end the run."""

    class OnlyOne(StaticStep):
        def __call__(self, inputs):
            if self.share is not None:
                raise RuntimeError("out of memory")
            return super().__call__(inputs)

    monkeypatch.setattr("ivedit.training.captured.StaticStep", OnlyOne)
    backbone = tiny_backbone(blocks=2)
    module = EditModule(backbone, build_editor({}, backbone), edit_config(), max_steps=1)
    module._captures = True
    held = []
    for pairs in (4, 2):
        batch = tiny_batch(backbone, pairs)
        r, seeds = training_draws(0, 0, 0, 0, pairs, 1)
        replayed = module._replay(module.step_tensors(batch, r, seeds, shift=3.0, kind="uniform"))
        held += [weakref.ref(gradient) for gradient in (replayed or (None, []))[1]]
    assert replayed is None and "goes on eagerly" in caplog.text
    assert held and not any(gradient() is not None for gradient in held)


def test_shared_texts_stay_one_object_and_other_texts_are_read(monkeypatch):
    backbone = tiny_backbone(blocks=2)
    cfg = edit_config()
    module = EditModule(backbone, build_editor(cfg.editor, backbone), cfg, max_steps=1)
    seen = []
    velocity = module.editor.velocity

    def record(frozen, x, sigma, context, text, **more):
        seen.append(text.gate is text.target)
        return velocity(frozen, x, sigma, context, text, **more)

    monkeypatch.setattr(module.editor, "velocity", record)
    batch = tiny_batch(backbone)
    loss_of(module, batch)
    loss_of(module, batch, draws=2)
    other = {**batch, "text_gate": TextStates(batch["text_gate"].states.flip(0), batch["text_gate"].mask.flip(0))}
    loss_of(module, other)
    assert seen == [True, True, False]


def test_validation_does_not_depend_on_how_pairs_are_batched(tmp_path):
    backbone = tiny_backbone(blocks=2)
    cfg = edit_config()
    batch = {**tiny_batch(backbone, 8), "numbers": torch.arange(8)}

    def pieces(size):
        for start in range(0, 8, size):
            yield {name: value[start : start + size] for name, value in batch.items()}

    module = EditModule(backbone, build_editor(cfg.editor, backbone), cfg, max_steps=1)
    module._trainer = type("Trainer", (), {"world_size": 1, "global_rank": 0})()
    values = []
    for size in (8, 4, 3):
        module.validation = lambda size=size: pieces(size)
        values.append(module.validate())
    assert values[0].keys() == values[1].keys() and len(values[0]) > 5
    for other in values[1:]:
        assert other == {name: pytest.approx(value, rel=1e-4) for name, value in values[0].items()}


def test_a_frozen_weight_that_changes_is_noticed(tmp_path, monkeypatch):
    class Vandal(Callback):
        def on_train_end(self, trainer, pl_module):
            next(pl_module.backbone.transformer.parameters()).data.add_(1e-3)

    monkeypatch.setattr(EditModule, "configure_callbacks", lambda self: [Vandal()])
    with pytest.raises(IveditError, match="frozen weight of the backbone changed"):
        run_edit(tmp_path, edit_config(epochs=1))


def test_three_steps_without_a_finite_loss_end_the_run_and_leave_a_good_checkpoint(tmp_path, monkeypatch):
    losses = EditModule.sample_losses

    def broken(self, tensors, weight=None):
        value = losses(self, tensors, weight)
        return value * float("nan") if self.trainer.global_step >= 4 else value

    monkeypatch.setattr(EditModule, "sample_losses", broken)
    with pytest.raises(IveditError, match="not finite in 3 steps in a row, up to step 7"):
        run_edit(tmp_path, edit_config(epochs=2))
    checkpoint = read_checkpoint(tmp_path / "checkpoints" / LAST)
    assert checkpoint["global_step"] == 6  # the updates of steps 5 and 6 were skipped
    assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values())


def test_another_accumulation_cannot_continue_a_run(tmp_path):
    run_edit(tmp_path, edit_config(epochs=2, accumulate=1))
    with pytest.raises(IveditError, match=r"train\.accumulate=1, now 2"):
        run_edit(tmp_path, edit_config(epochs=4, accumulate=2))


def test_another_batch_size_cannot_continue_a_run(tmp_path):
    run_edit(tmp_path, edit_config(epochs=1))
    with pytest.raises(ConfigError, match=r"train\.batch_size"):
        run_edit(tmp_path, edit_config(epochs=4, batch_size=2))


def test_without_averaging_the_weights_themselves_are_exported(tmp_path):
    outcome, editor, _ = run_edit(tmp_path, edit_config(epochs=1, ema=0.0))
    exported = load_file(outcome.editor_file)
    stored = read_checkpoint(tmp_path / "checkpoints" / LAST)["state_dict"]
    for name, value in editor.state_dict().items():
        assert torch.equal(value, exported[name]) and torch.equal(value, stored[f"editor.{name}"])


def test_an_exported_editor_says_how_it_was_trained(tmp_path):
    outcome, _, _ = run_edit(tmp_path, edit_config(epochs=1))
    extra = read_editor_header(outcome.editor_file)["extra"]
    assert extra["step"] == 6 and extra["config"]["text"]["target"] == "instruction"
    assert extra["pairs"] == 24 and extra["config"]["data"] == {
        "reader": "sprites", "height": 16, "width": 16, "buckets": [],
    }  # fmt: skip


def test_no_steps_export_the_editor_as_it_is(tmp_path):
    outcome, _, _ = run_edit(tmp_path, edit_config(epochs=0))
    assert outcome.steps == 0 and outcome.editor_file.exists() and outcome.val_loss is None


def test_the_number_of_steps():
    assert total_steps(edit_config(epochs=5, accumulate=2), 13) == 32
    assert total_steps(edit_config(epochs=5, max_steps=7), 13) == 7
    with pytest.raises(ConfigError, match=r"train\.accumulate=8"):
        total_steps(edit_config(epochs=1, accumulate=8), 4)


def test_training_is_shifted_at_least_as_far_as_sampling(caplog):
    cfg = edit_config()
    assert training_shift(cfg, 3.0) == 3.0
    cfg.flow.shift = 5.0
    assert training_shift(cfg, 3.0) == 5.0 and not caplog.text
    cfg.flow.shift = 1.0
    assert training_shift(cfg, 3.0) == 3.0 and "raised" in caplog.text
    cfg.sampling.shift = 8.0
    assert training_shift(cfg, 3.0) == 8.0


def train_in_child(folder, epochs, accumulate, pause):
    torch.set_num_threads(1)
    outcome, _, _ = run_edit(folder, edit_config(epochs=epochs, accumulate=accumulate, checkpoint_every=2), pause=pause)
    (folder / "stopped").write_text(str(outcome.stopped_early))


def start(*arguments):
    """A process of its own, forked: importing everything anew would take far longer than its steps."""
    process = multiprocessing.get_context("fork").Process(target=train_in_child, args=arguments)
    process.start()
    return process


def wait_for_step(folder, step, process):
    deadline = time.monotonic() + 180
    while reached_step(folder / "checkpoints") < step:
        assert process.is_alive() and time.monotonic() < deadline, process.exitcode
        time.sleep(0.01)


def test_an_interrupted_process_saves_first(tmp_path):
    process = start(tmp_path, 10_000, 1, 0.02)
    wait_for_step(tmp_path, 2, process)
    os.kill(process.pid, signal.SIGINT)
    process.join(120)
    assert process.exitcode == 0
    assert (tmp_path / "stopped").read_text() == "stopped by SIGINT"
    assert (tmp_path / "checkpoints/editor.safetensors").exists()


def test_a_process_killed_at_random_moments_ends_with_the_same_weights(tmp_path):
    # 3 steps an epoch and a checkpoint every 2: kills fall in the middle of epochs and of steps.
    epochs, accumulate, steps = 8, 2, 24
    run_edit(tmp_path / "whole", edit_config(epochs=epochs, accumulate=accumulate, checkpoint_every=2))
    chance = random.Random(0)
    for _ in range(2):
        process = start(tmp_path / "cut", epochs, accumulate, 0.05)
        reached = reached_step(tmp_path / "cut/checkpoints")
        try:
            wait_for_step(tmp_path / "cut", min(reached + 2, steps - 2), process)
            time.sleep(chance.random() * 0.3)
        finally:
            process.kill()
            process.join()
    assert 2 <= reached_step(tmp_path / "cut/checkpoints") < steps
    run_edit(tmp_path / "cut", edit_config(epochs=epochs, accumulate=accumulate, checkpoint_every=2))
    assert sorted(p.name for p in (tmp_path / "cut/checkpoints").iterdir()) == ["editor.safetensors", LAST]
    a, b = (read_checkpoint(tmp_path / d / "checkpoints" / LAST) for d in ("whole", "cut"))
    for name in a["state_dict"]:
        assert torch.equal(a["state_dict"][name], b["state_dict"][name])
    files = [(tmp_path / d / "checkpoints/editor.safetensors").read_bytes() for d in ("whole", "cut")]
    assert files[0] == files[1]


def start_ranks(folder, epochs, accumulate, devices):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, str(SCRIPT), str(folder), str(epochs), str(accumulate), str(devices)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    run_edit(tmp_path / "one", edit_config(epochs=1, accumulate=2, checkpoint_every=2))
    two = start_ranks(tmp_path / "two", 1, 1, devices=2)
    _, err = two.communicate(timeout=300)
    assert two.returncode == 0, err
    a, b = (read_checkpoint(tmp_path / d / "checkpoints" / LAST) for d in ("one", "two"))
    assert a["global_step"] == b["global_step"] == 3
    for name in a["state_dict"]:
        torch.testing.assert_close(a["state_dict"][name], b["state_dict"][name], rtol=1e-2, atol=1e-3)
    losses = [c["callbacks"]["Validation"]["values"]["loss"] for c in (a, b)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
