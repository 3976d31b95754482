"""How the ranks of a run come to the same run folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ivedit.errors import IveditError
from ivedit.ranks import Ranks, tell_path
from ivedit.runfolder import RUN_FOLDER_VARIABLE, RunFolder

__all__ = ["open_folder"]


def open_folder(cfg: Any, ranks: Ranks) -> RunFolder:
    """The run's folder, a new one or that of ``resume``; ranks started all at once are told by rank 0 where it is.

    Raises:
        IveditError: It cannot be made or is no run folder; the ranks cannot meet.
    """
    if not cfg.resume:
        together = ranks.world > 1 and ranks.started_by in ("torchrun", "srun")
        if not together or RUN_FOLDER_VARIABLE in os.environ:
            return RunFolder.create(cfg)
        path = None
        try:
            if ranks.rank == 0:
                path = str(RunFolder.create(cfg).path)
        finally:
            path = tell_path(ranks, path)
        if path is None:
            raise IveditError("rank 0 could not make the run folder")
        os.environ[RUN_FOLDER_VARIABLE] = path
        return RunFolder(path)
    run = RunFolder.open(Path(cfg.resume).expanduser())
    if ranks.rank == 0:
        run.write_config(cfg)
        run.update_status(state="RUNNING")
    return run
