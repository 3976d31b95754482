"""The generic trainer: metrics, averaging, checkpoints, exact resume and orderly stops."""

import os
import signal

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from ivedit.errors import IveditError
from ivedit.training import reached_step, read_checkpoint
from ivedit.training.checkpoint import LAST
from tests.training.small import SmallModule, run_small


class Records:
    """A tracker that keeps what it is told."""

    def __init__(self):
        self.rows = {}

    def log_metrics(self, values, step):
        self.rows.setdefault(step, {}).update(values)


class StopAt(Callback):
    """Raises in the middle of a step, as a crash would."""

    def __init__(self, batch_idx):
        self.batch_idx = batch_idx

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.batch_idx:
            raise RuntimeError("crash")


def equal(a, b):
    return all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()


def test_metrics_validation_and_learning_rate_are_logged_by_step(tmp_path):
    tracker = Records()
    run_small(tmp_path, 12, tracker=tracker)
    assert set(tracker.rows) == {5, 10, 12}
    assert {"train/loss", "train/lr", "train/steps_per_second"} <= tracker.rows[5].keys()
    assert "val/weight" in tracker.rows[10] and "val/weight" in tracker.rows[12]
    assert tracker.rows[12]["train/lr"] == pytest.approx(0.05 * 0.05)


def test_a_checkpoint_holds_no_frozen_weights_and_only_plain_containers(tmp_path):
    run_small(tmp_path, 4)
    checkpoint = read_checkpoint(tmp_path / "checkpoints" / LAST)  # weights_only=True
    assert set(checkpoint["state_dict"]) == {"layer.weight", "layer.bias"}
    assert set(checkpoint["callbacks"]["EmaCallback"]["average"]) == {"layer.weight", "layer.bias"}
    assert checkpoint["global_step"] == 4 == reached_step(tmp_path / "checkpoints")
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [LAST]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("crash_at", [1, 5, 14])
def test_a_crashed_run_resumes_to_the_same_weights(tmp_path, accumulate, crash_at):
    whole, whole_average, _ = run_small(tmp_path / "whole", 7, accumulate=accumulate, checkpoint_every=2)
    module = SmallModule(7)
    module.configure_callbacks = lambda: [StopAt(crash_at)]
    if crash_at < 7 * accumulate:
        with pytest.raises(RuntimeError, match="crash"):
            run_small(tmp_path / "cut", 7, accumulate=accumulate, module=module, checkpoint_every=2)
    torch.manual_seed(99)
    resumed, average, reason = run_small(tmp_path / "cut", 7, accumulate=accumulate, checkpoint_every=2)
    assert reason is None
    assert resumed.seen == whole.seen[len(whole.seen) - len(resumed.seen) :]
    assert equal(resumed.layer.state_dict(), whole.layer.state_dict())
    assert equal(average, whole_average)


def test_resuming_a_finished_run_changes_nothing_and_keeps_its_average(tmp_path):
    first, average, _ = run_small(tmp_path, 6)
    again, average_again, reason = run_small(tmp_path, 6)
    assert again.seen == [] and reason is None
    assert equal(first.layer.state_dict(), again.layer.state_dict()) and equal(average, average_again)


def test_a_finished_run_can_be_made_longer(tmp_path):
    run_small(tmp_path, 6)
    longer, _, reason = run_small(tmp_path, 9)
    assert longer.seen == [6, 7, 8] and reason is None


def test_a_time_limit_leaves_a_checkpoint_from_which_the_run_goes_on(tmp_path):
    whole, _, _ = run_small(tmp_path / "whole", 6)
    _, _, reason = run_small(tmp_path / "cut", 6, max_minutes=1e-9, checkpoint_every=100)
    assert "max_minutes" in reason and reached_step(tmp_path / "cut/checkpoints") == 1
    resumed, _, reason = run_small(tmp_path / "cut", 6, checkpoint_every=100)
    assert reason is None and resumed.seen == [1, 2, 3, 4, 5]
    assert equal(resumed.layer.state_dict(), whole.layer.state_dict())


@pytest.mark.parametrize(
    ("text", "reason"), [("", "asked to stop by stop"), ("pruned: at step 1\n", "pruned: at step 1")]
)
def test_a_stop_file_stops_the_run_for_the_reason_that_it_gives(tmp_path, monkeypatch, text, reason):
    (tmp_path / "stop").write_text(text)
    monkeypatch.setenv("IVEDIT_STOP_FILE", str(tmp_path / "stop"))
    _, _, told = run_small(tmp_path, 6)
    assert told == reason and reached_step(tmp_path / "checkpoints") == 1


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(tmp_path):
    with pytest.raises(IveditError, match="loss is nan within the 5 steps before step 5"):
        run_small(tmp_path, 10, module=SmallModule(10, broken_from=2))


def test_a_checkpoint_of_other_modules_is_refused_by_name(tmp_path):
    run_small(tmp_path, 4)
    path = tmp_path / "checkpoints" / LAST
    checkpoint = read_checkpoint(path)
    checkpoint["state_dict"]["layer.weight"] = torch.zeros(2, 2)
    checkpoint["state_dict"]["layer.extra"] = checkpoint["state_dict"].pop("layer.bias")
    torch.save(checkpoint, path)
    with pytest.raises(IveditError, match=r"layer\.bias is missing; layer\.extra is unknown; layer\.weight has shape"):
        run_small(tmp_path, 8)


def test_a_damaged_checkpoint_is_refused_by_path(tmp_path):
    run_small(tmp_path, 4)
    path = tmp_path / "checkpoints" / LAST
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(IveditError, match=r"last\.ckpt cannot be read"):
        run_small(tmp_path, 8)


class SignalAt(Callback):
    """Sends this process a signal in the middle of a step, as a terminal or a cluster does."""

    def __init__(self, batch_idx, number):
        self.batch_idx, self.number = batch_idx, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.batch_idx:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_first_and_goes_on_to_the_same_weights(tmp_path, number):
    whole, whole_average, _ = run_small(tmp_path / "whole", 7, checkpoint_every=100)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    module = SmallModule(7)
    module.configure_callbacks = lambda: [SignalAt(3, number)]
    _, _, reason = run_small(tmp_path / "cut", 7, module=module, checkpoint_every=100)
    assert reason == f"stopped by {signal.Signals(number).name}"
    assert reached_step(tmp_path / "cut/checkpoints") == 4  # the step under way was finished
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    resumed, average, reason = run_small(tmp_path / "cut", 7, checkpoint_every=100)
    assert reason is None and resumed.seen == [4, 5, 6]
    assert equal(resumed.layer.state_dict(), whole.layer.state_dict()) and equal(average, whole_average)
