"""Keeping the libraries' own bars and tips out of the output, and their imports short, in one place.

Loading one backbone makes transformers and diffusers draw several bars, and a Trainer advises about loggers, GPUs and
its own end. None of it is about the run, and in a notebook or a log it buries what is. Warnings about real trouble,
downloads from the hub, and this package's own progress stay.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["no_collecting", "no_library_bars", "no_trainer_tips"]

_TRAINER_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric")
"""Each has a level or a handler of its own."""

_ON_PURPOSE = (
    "in eval mode at the start", "does not have many workers", "is not resumable", "GPU available but not used",
    "treespec, LeafSpec", "overridden `transfer_batch_to_device`",
    "AccumulateGrad node's stream does not match",  # of DDP on GPUs: Lightning builds it on a stream of its own
)  # fmt: skip
"""What is warned of during training and done on purpose."""


@contextmanager
def no_collecting() -> Iterator[None]:
    """Inside the block, which imports, no garbage is looked for.

    torch, lightning and diffusers make a million objects on the way in, none of them garbage. Looking through them
    again and again takes 0.7 s of a run's start.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def no_library_bars() -> Iterator[None]:
    """Inside the block transformers and diffusers draw no bars for reading and writing weights.

    Their setting before is set again afterwards: a notebook may use the libraries for itself.
    """
    import diffusers.utils.logging
    import transformers.utils.logging

    shown = [
        module for module in (transformers.utils.logging, diffusers.utils.logging) if module.is_progress_bar_enabled()
    ]
    for module in shown:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in shown:
            module.enable_progress_bar()


@contextmanager
def no_trainer_tips() -> Iterator[None]:
    """Inside the block Lightning says warnings and errors only, and none about choices made here on purpose."""
    loggers = [logging.getLogger(name) for name in _TRAINER_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logger.level, logging.WARNING))
    try:
        with warnings.catch_warnings():
            for words in _ON_PURPOSE:
                warnings.filterwarnings("ignore", f".*{words}.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
