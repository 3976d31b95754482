"""Libraries' bars and tips stay out of the output, and a notebook's own settings stay as they were."""

from __future__ import annotations

import logging

import diffusers.utils.logging
import lightning as L
import pytest
import torch
import transformers.utils.logging

from ivedit.backbone import Backbone
from ivedit.quiet import no_library_bars, no_trainer_tips
from ivedit.training.trainer import build_trainer
from tests.backbone.tiny import tiny_backbone

LIBRARIES = (transformers.utils.logging, diffusers.utils.logging)


@pytest.fixture
def bars_on():
    """Bars as in a fresh process, whatever ran before."""
    before = [library.is_progress_bar_enabled() for library in LIBRARIES]
    for library in LIBRARIES:
        library.enable_progress_bar()
    yield
    for library, shown in zip(LIBRARIES, before, strict=True):
        if not shown:
            library.disable_progress_bar()


def test_loading_the_sharded_shipped_pipeline_draws_no_bar(bars_on, capfd):
    Backbone.load("wan-sprites", components=("transformer", "text_encoder"))
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert all(library.is_progress_bar_enabled() for library in LIBRARIES)


def test_writing_weights_in_shards_draws_no_bar(bars_on, capfd, tmp_path):
    parts = tiny_backbone()
    with no_library_bars():
        parts.transformer.save_pretrained(tmp_path / "transformer", max_shard_size="20KB")
        parts.text_encoder.save_pretrained(tmp_path / "text", max_shard_size="1KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    assert capfd.readouterr().err == ""


def test_bars_that_the_user_has_switched_off_stay_off(bars_on):
    diffusers.utils.logging.disable_progress_bar()
    with no_library_bars():
        pass
    assert [library.is_progress_bar_enabled() for library in LIBRARIES] == [True, False]


def test_bars_come_back_after_an_error(bars_on):
    with pytest.raises(ValueError, match="broken"), no_library_bars():
        raise ValueError("broken")
    assert all(library.is_progress_bar_enabled() for library in LIBRARIES)


@pytest.fixture
def tips():
    """What Lightning's logger hands to its handlers."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("lightning.pytorch")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


class OneWeight(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit_once() -> None:
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, barebones=False,
    )  # fmt: skip
    trainer.fit(OneWeight(), torch.utils.data.DataLoader(torch.ones(2, 1)))


def test_a_trainer_gives_no_tips_about_loggers_gpus_and_its_end(tips):
    fit_once()
    assert any("GPU available" in tip for tip in tips) and any("stopped" in tip for tip in tips)
    tips.clear()
    with no_trainer_tips():
        fit_once()
        logging.getLogger("lightning.pytorch").warning("something is wrong")
    assert tips == ["something is wrong"]
    assert logging.getLogger("lightning.pytorch").level == logging.INFO


def test_the_packages_own_trainer_is_quiet(tips):
    from ivedit.config.schema import Config

    config = Config()
    config.train.accelerator = "cpu"
    build_trainer(config, None, None, max_steps=1)
    assert tips == []
