"""Training: one Trainer for every module of the package, checkpoints that resume exactly, and the edit module."""

from ivedit.training.callbacks import ema_weights
from ivedit.training.checkpoint import reached_step, read_checkpoint
from ivedit.training.ema import Ema
from ivedit.training.loader import RunLoader
from ivedit.training.module import EditModule
from ivedit.training.optim import build_adamw, build_optimizer, clip_and_guard, warmup_cosine
from ivedit.training.run import TrainOutcome, prepare_pairs, total_steps, train
from ivedit.training.trainer import build_trainer, fit

__all__ = [
    "EditModule",
    "Ema",
    "RunLoader",
    "TrainOutcome",
    "build_adamw",
    "build_optimizer",
    "build_trainer",
    "clip_and_guard",
    "ema_weights",
    "fit",
    "prepare_pairs",
    "reached_step",
    "read_checkpoint",
    "total_steps",
    "train",
    "warmup_cosine",
]
