"""A real Lightning run that is interrupted and resumed sees the batches of the uninterrupted one."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ivedit.data.datamodule import PairDataModule

from .conftest import ToyEncoders, sprite_config


class _Stop(Exception):
    pass


class _Listener(L.LightningModule):
    """Writes down what it is given, and dies before a step if told so."""

    def __init__(self, seen: list, die_at: int | None = None) -> None:
        super().__init__()
        self.seen, self.die_at = seen, die_at
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        if self.global_step == self.die_at:
            raise _Stop
        self.seen.append((self.global_step, index, tuple(batch["ids"]), batch["text_gate"].states.sum().item()))
        return (self.weight * batch["source"].mean()).square().sum()

    def validation_step(self, batch, index):
        self.log("loss", batch["source"].mean(), batch_size=len(batch["ids"]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(tmp_path, every: int, seen: list, *, die_at=None, checkpoint=None, cache="memory", workers=0, **limits):
    cfg = sprite_config(cache=cache, workers=workers, null_edits=0.2)
    encoders = ToyEncoders()
    module = PairDataModule(cfg, encoders.encode_pixels, encoders.encode_text, encoders.fingerprint)
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=every, save_top_k=-1, filename="{step}")
    trainer = L.Trainer(
        accelerator="cpu", devices=1, callbacks=[saver], logger=False, enable_progress_bar=False,
        enable_model_summary=False, val_check_interval=4, check_val_every_n_epoch=None, **limits,
    )
    trainer.fit(_Listener(seen, die_at), module, ckpt_path=checkpoint, weights_only=True)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 16}])
@pytest.mark.parametrize("every", [1, 4])
def test_lightning_resumes_at_the_very_batch(tmp_path, limits, every):
    whole: list = []
    _fit(tmp_path / "whole", every, whole, **limits)
    assert len(whole) == (18 if "max_steps" not in limits else 16)
    for die_at in (6, 7, 14):  # 6 batches an epoch
        folder = tmp_path / f"cut{die_at}"
        cut: list = []
        with pytest.raises(_Stop):
            _fit(folder, every, cut, die_at=die_at, **limits)
        last = max(folder.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
        step = int(last.stem.split("=")[1])
        rest: list = []
        _fit(folder, every, rest, checkpoint=str(last), **limits)
        assert rest == whole[step:], (die_at, step)


@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_a_stream_with_loader_processes(tmp_path):
    whole: list = []
    rest: list = []
    stream = {"cache": "none", "workers": 1, "max_epochs": 2}
    _fit(tmp_path / "whole", 3, whole, **stream)
    _fit(tmp_path / "rest", 3, rest, checkpoint=str(tmp_path / "whole/step=9.ckpt"), **stream)
    assert rest == whole[9:] and len(whole) == 12


@pytest.mark.filterwarnings("ignore")
def test_accumulation_counts_micro_batches(tmp_path):
    whole: list = []
    rest: list = []
    module = _fit(tmp_path / "whole", 1, whole, max_epochs=2, accumulate_grad_batches=2)
    assert len(whole) == 12
    _fit(
        tmp_path / "rest", 1, rest, checkpoint=str(tmp_path / "whole/step=4.ckpt"), max_epochs=2,
        accumulate_grad_batches=2,
    )
    assert rest == whole[8:]
    module.set_micro_batches(8)
    assert next(iter(module.train_dataloader()))["ids"] == list(whole[8][2])
