"""``python -m ivedit.run ... --plan [GPU]``: the estimate, as text and as JSON."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ivedit.errors import ConfigError
from ivedit.planning.gpus import Gpu, chosen_gpu
from ivedit.quiet import no_collecting
from ivedit.runfolder import write_json_atomic

__all__ = ["plan"]


def plan(cfg: Any, gpu: str = "", json_file: str | None = None) -> str:
    """The text that ``--plan`` prints; also writes the values to ``json_file``.

    Args:
        cfg: The run's `Config`, for ``task=edit``.
        gpu: A name of `gpus.yaml`; empty: the GPU of this machine.
        json_file: Where the values go, in bytes, seconds and operations; None: nowhere.

    Raises:
        ConfigError: Another task, no such GPU, or settings that do not fit together.
        IveditError: The backbone's configs cannot be read.
    """
    if cfg.task != "edit":
        raise ConfigError(f"--plan: task={cfg.task} cannot be planned, only task=edit; leave out --plan")
    if json_file is not None and not Path(json_file).expanduser().absolute().parent.is_dir():
        raise ConfigError(f"--plan-json: {json_file} cannot be written, its folder does not exist")
    chosen, how = chosen_gpu(gpu)  # before anything heavy is imported
    with no_collecting():  # neither while libraries are imported nor among a plan's million short-lived objects
        values, text = _planned(cfg, chosen, how)
    if json_file is not None:
        write_json_atomic(Path(json_file).expanduser(), values)
    return text


def _planned(cfg: Any, gpu: Gpu, how: str) -> tuple[dict[str, Any], str]:
    from ivedit.planning.report import plan_text, plan_values

    logger = logging.getLogger("ivedit")
    before = logger.level
    logger.setLevel(logging.ERROR)  # a plan tries settings; what they would warn of is not news
    try:
        values = plan_values(cfg, gpu)
    finally:
        logger.setLevel(before)
    return values, plan_text(values, how)
