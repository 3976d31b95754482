"""``--launcher slurm``: each worker is a job of the cluster, submitted through submitit (extra ``ivedit[slurm]``).

A job is one worker of the same studies as everybody else's, on whatever GPUs the scheduler gave it. Before its time
is over, or when it is preempted, it has its child keep a checkpoint, gives the slot back and is queued again. The
launcher stays to show the table; if it is killed, the jobs go on. Ctrl-C reaches the jobs through a file, since the
sweep's folder is shared with them anyway.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ivedit.errors import ConfigError, IveditError
from ivedit.runfolder import write_text_atomic
from ivedit.sweeping.devices import share_out
from ivedit.sweeping.spec import Sweep
from ivedit.sweeping.worker import Orders, SlotWorker, work

__all__ = ["Job", "SlurmCrew", "parameters"]

log = logging.getLogger("ivedit.sweeping")

_SHARED = (
    "cpus_per_task", "gpus_per_node", "mem_gb", "name", "nodes", "stderr_to_stdout", "tasks_per_node", "timeout_min",
)  # fmt: skip
"""What submitit calls alike on every cluster; other names are SLURM's own and get its prefix."""

MOST_RESTARTS = 20


class Job:
    """A worker as submitit runs it: called in the job, asked for a `checkpoint` before the job's time is over."""

    def __init__(self, orders: Orders, accelerators: Sequence[str]) -> None:
        self.orders = orders
        self.accelerators = list(accelerators)
        self._worker: SlotWorker | None = None

    def __call__(self) -> tuple[int, str | None]:
        """`work`, in a place made of what this job was given."""
        try:
            (place,) = share_out(self.orders.sweep, 1, self.accelerators)
        except ConfigError as error:
            return 1, "; ".join(error.problems)
        return work(dataclasses.replace(self.orders, place=place), self._remember)

    def _remember(self, worker: SlotWorker) -> None:
        self._worker = worker

    def checkpoint(self) -> Any:
        """Give the slot back, its child's checkpoint kept, and be queued again."""
        from submitit.helpers import DelayedSubmission

        if self._worker is not None:
            self._worker.hand_over()
        return DelayedSubmission(Job(self.orders, self.accelerators))


class SlurmCrew:
    """The workers of a launcher as jobs; see `ivedit.sweeping.launcher.Crew`."""

    def __init__(self, sweep: Sweep, orders: Sequence[Orders], accelerators: Sequence[str]) -> None:
        folder = sweep.folder.resolve() / "slurm"
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # a submission holds the addresses of the storages, with their passwords
        self._stop = folder / f"stop-{secrets.token_hex(4)}"
        self._executor = _executor(sweep, folder)
        self._restarts = self._stopping = 0
        self._jobs = [
            self._submit(Job(dataclasses.replace(order, stop_file=self._stop), accelerators)) for order in orders
        ]

    def _submit(self, job: Job) -> tuple[Job, Any]:
        submitted = self._executor.submit(job)
        log.info("%s is job %s", job.orders.name, submitted.job_id)
        return job, submitted

    def poll(self) -> bool:
        """See `Crew.poll`. A job that ended without a word (its node died) is submitted again."""
        working = False
        for index, (job, submitted) in enumerate(self._jobs):
            if not submitted.done():
                working = True
                continue
            if self._stopping:
                continue
            try:
                code, told = submitted.result()
            except Exception as error:  # submitit's own, or whatever the job raised
                self._restarts += 1
                if self._restarts > MOST_RESTARTS:
                    raise IveditError(f"jobs ended without a result {self._restarts} times: {_line(error)}") from error
                log.info("%s ended without a result and is submitted again: %s", job.orders.name, _line(error))
                self._jobs[index] = self._submit(job)
                working = True
                continue
            if code == 1:
                raise IveditError(told or f"{job.orders.name} failed; see {submitted.paths.stderr}")
        return working

    def stop(self, times: int) -> None:
        """See `Crew.stop`."""
        self._stopping = times
        write_text_atomic(self._stop, f"{times}\n")
        if times > 2:
            for _, submitted in self._jobs:
                submitted.cancel(check=False)

    def close(self) -> None:
        """Stop in order what is still at work, for the crew's launcher has failed."""
        if any(not submitted.done() for _, submitted in self._jobs):
            self.stop(max(1, self._stopping))


def parameters(sweep: Sweep) -> dict[str, Any]:
    """What submitit is told about a job: the sweep's ``slurm`` over defaults, values typed as in YAML."""
    given = {key: yaml.safe_load(value) for key, value in sweep.slurm.items() if key != "cluster"}
    default = {"name": sweep.name, "timeout_min": 24 * 60, "cpus_per_task": sweep.threads_per_trial or 4}
    return {
        key if key in _SHARED or key.startswith("slurm_") else f"slurm_{key}": value
        for key, value in (default | given).items()
    }


def _executor(sweep: Sweep, folder: Path) -> Any:
    """submitit's executor; ``slurm.cluster=local`` runs the jobs as processes of this machine, to try things out."""
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("launcher=slurm needs submitit: pip install 'ivedit[slurm]'") from error
    cluster = sweep.slurm.get("cluster", "slurm")
    try:
        options = {"slurm_max_num_timeout": 1000} if cluster == "slurm" else {}
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **options)
        executor.update_parameters(**parameters(sweep))
    except Exception as error:  # no srun on this machine, an unknown parameter
        raise ConfigError(f"slurm: submitit refuses cluster {cluster!r} and these settings: {_line(error)}") from error
    return executor


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
