"""When a training step runs compiled, how long compiling took, and what happens when it fails."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ivedit.backbone import Backbone
from ivedit.backbone.compiled import CompileClock, compile_failed, is_large
from ivedit.errors import IveditError

__all__ = ["StepCompiler"]

logger = logging.getLogger("ivedit.training")

class StepCompiler:
    """Whether the blocks of a training step are compiled; asked anew for each step.

    Attributes:
        active: compile the blocks of the next step.
        why: of the choice, for the log.
    """

    def __init__(self, cfg: Any, backbone: Backbone, device: torch.device) -> None:
        """Decide.

        Args:
            cfg: The run's `Config`.
            backbone: Frozen.
            device: Where the step runs.
        """
        self.setting = str(cfg.train.compile)
        self.active, self.why = _choice(self.setting, backbone, device)
        self._clock = CompileClock()
        self._told = 0.0

    def __enter__(self) -> StepCompiler:
        """Time what is compiled inside the block."""
        self._clock.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Say how long compiling took, if it did."""
        self._clock.__exit__(*error)
        if (spent := self._clock.seconds - self._told) > 0:
            logger.info("compiled the blocks of a step in %.0f s (kept on disk for the next run)", spent)
            self._told = self._clock.seconds

    def give_up(self, error: BaseException) -> bool:
        """Whether the step is to be run again without compiling: only after a failure of compiling, under ``auto``.

        Raises:
            IveditError: compiling failed and ``train.compile=on``.
        """
        if not self.active or not compile_failed(error):
            return False
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if self.setting == "on":
            raise IveditError(f"train.compile=on, but the blocks cannot be compiled: {reason}") from error
        logger.warning("the blocks cannot be compiled (%s); training goes on without, more slowly", reason)
        self.active = False
        return True


def _choice(setting: str, backbone: Backbone, device: torch.device) -> tuple[bool, str]:
    if setting != "auto":
        return setting == "on", f"train.compile={setting}"
    if device.type != "cuda":
        return False, f"train.compile=auto; the device is {device.type}"
    if not is_large(backbone):
        return False, "train.compile=auto; a small backbone"
    return True, "train.compile=auto"
