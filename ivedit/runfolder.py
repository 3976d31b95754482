"""The run folder: everything that is known about one run, as plain files.

It is complete by itself, so that a run on a machine without MLflow loses nothing: `ivedit.tracking` mirrors
it into MLflow, and `python -m ivedit.report --import FOLDER` does so afterwards. Nothing heavy is imported
here, because `python -m ivedit.run --help` and error paths pass through this file.

    <output_dir>/<name>-<YYYYmmdd-HHMMSS>-<4 hex>/
      config.yaml        the resolved configuration
      environment.json   python, platform, package versions, git commit, cpu, gpu
      status.json        state, reason, started, ended, id, mlflow_run_id
      metrics.jsonl      one line per logging step: {"step", "time", name: value, ...}
      log.txt            what the run said
      checkpoints/       trained weights
      results.json, results.md, media/   what the evaluation found
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import secrets
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ivedit.errors import IveditError
from ivedit.ranks import process_rank

STATES = ("RUNNING", "FINISHED", "FAILED", "STOPPED", "PRUNED")
"""STOPPED: ended on request (time limit, interrupt) before its last step; `resume=` continues it. PRUNED: ended by a
sweep, which found it not worth going on with."""

RUN_FOLDER_VARIABLE = "IVEDIT_RUN_FOLDER"
"""Set by rank 0 for the ranks it starts; set it yourself when torchrun or SLURM starts all ranks at once."""

RUN_PATH_VARIABLE = "IVEDIT_RUN_PATH"
"""The new run's folder, where the caller must know it beforehand (a sweep's parent does); instead of a name made from
time and chance."""

_PASSWORD = re.compile(r"(\w[\w+.-]*://[^\s/:@]*:)[^\s/@]+@")

PACKAGES = (
    "ivedit", "torch", "lightning", "diffusers", "transformers", "tokenizers", "safetensors", "accelerate",
    "torchmetrics", "omegaconf", "mlflow", "optuna", "numpy", "av", "datasets", "opencv-python-headless",
)  # fmt: skip


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write ``text`` so that a reader sees the old file or the whole new one, whenever this is killed."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes private files; run folders are shared
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json_atomic(path: str | Path, value: Any) -> None:
    """`write_text_atomic` of indented JSON. Non-finite numbers are refused: strict JSON has none."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


class RunFolder:
    """One run's folder. Make it with `create` or `open`, not with the constructor."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()

    # -- making and opening ------------------------------------------------------------------------

    @classmethod
    def create(cls, cfg: Any) -> RunFolder:
        """Make ``<cfg.output_dir>/<cfg.name>-<time>-<4 hex>`` with config, environment and status RUNNING.

        ``cfg`` is the structured config, as a dataclass or an OmegaConf node. `IVEDIT_RUN_PATH` names the folder
        instead; one that is a run folder already is refused, one that a kill left without status.json is started
        over. A rank other than 0 makes nothing and opens the folder that rank 0 made (`IVEDIT_RUN_FOLDER`).
        """
        given = os.environ.get(RUN_FOLDER_VARIABLE)
        all_at_once = "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1
        if process_rank() > 0:
            if not given:
                raise IveditError(
                    f"rank {process_rank()} does not know the run folder: set {RUN_FOLDER_VARIABLE} to a new "
                    "folder's path before starting the ranks with torchrun or srun"
                )
            return cls(given)
        wanted = os.environ.get(RUN_PATH_VARIABLE)
        if all_at_once and given:
            path = Path(given)
        elif wanted:
            path = Path(wanted)
            if is_run_folder(path):
                raise IveditError(f"{RUN_PATH_VARIABLE}: {path} holds a run already; continue it with resume={path}")
        else:
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
            path = Path(cfg.output_dir) / f"{cfg.name}-{stamp}-{secrets.token_hex(2)}"
        run = cls(path)
        try:
            run.path.mkdir(parents=True, exist_ok=all_at_once or bool(wanted))
            run.checkpoints.mkdir(exist_ok=True)
            run.media.mkdir(exist_ok=True)
            run.write_config(cfg)
            write_json_atomic(run.path / "environment.json", describe_environment())
            write_json_atomic(run.path / "status.json", {
                "state": "RUNNING", "reason": None, "started": _now(), "ended": None,
                "id": uuid.uuid4().hex, "mlflow_run_id": None,
            })  # fmt: skip
        except OSError as error:
            reason = error.strerror or str(error)
            raise IveditError(f"cannot write the run folder {run.path} (output_dir): {reason}") from error
        os.environ[RUN_FOLDER_VARIABLE] = str(run.path)
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run folder; one without config.yaml and status.json is refused by name."""
        run = cls(path)
        for name in ("config.yaml", "status.json"):
            if not (run.path / name).is_file():
                raise IveditError(f"{path} is not a run folder: it has no {name}")
        return run

    # -- places ------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The folder's own name: readable and unique."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def media(self) -> Path:
        return self.path / "media"

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    # -- configuration and status ------------------------------------------------------------------

    def write_config(self, cfg: Any) -> None:
        """Write config.yaml, every field resolved."""
        from omegaconf import OmegaConf

        node = cfg if OmegaConf.is_config(cfg) else OmegaConf.structured(cfg)
        write_text_atomic(self.path / "config.yaml", redact(OmegaConf.to_yaml(node, resolve=True)))

    def config(self) -> dict[str, Any]:
        """The configuration that the run was last started with, as plain containers."""
        from omegaconf import OmegaConf

        loaded = OmegaConf.to_container(OmegaConf.load(self.path / "config.yaml"))
        if not isinstance(loaded, dict):
            raise IveditError(f"{self.path / 'config.yaml'} is not a configuration")
        return {str(key): value for key, value in loaded.items()}

    def status(self) -> dict[str, Any]:
        """The content of status.json."""
        return self._read_json("status.json")

    def update_status(self, **fields: Any) -> None:
        """Change fields of status.json; entering an end state stamps ``ended``, RUNNING clears it."""
        status = self.status()
        state = fields.get("state", status["state"])
        if state not in STATES:
            raise ValueError(f"state {state!r} is none of {', '.join(STATES)}")
        if "state" in fields:
            status["ended"] = None if state == "RUNNING" else _now()
            if state == "RUNNING":
                status["reason"] = None
        write_json_atomic(self.path / "status.json", {**status, **fields})

    # -- metrics -----------------------------------------------------------------------------------

    def append_metrics(self, values: Mapping[str, float], step: int) -> float:
        """Append one line to metrics.jsonl; it is in the operating system's hands when this returns its time.

        A non-finite value is kept as the string "nan", "inf" or "-inf", which strict JSON readers accept.
        """
        row: dict[str, Any] = {"step": int(step), "time": round(time.time(), 3)}
        for name, value in values.items():
            if name in row:
                raise ValueError(f"a metric cannot be called {name!r}")
            number = float(value)
            row[name] = number if math.isfinite(number) else str(number)
        line = json.dumps(row) + "\n"
        with open(self.path / "metrics.jsonl", "ab+") as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":  # a killed run left half a line: the next one starts on its own
                    line = "\n" + line
            file.write(line.encode())
        return float(row["time"])

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl in order of writing, without a line that a kill cut short."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # only a torn write can be here, see append_metrics
            if isinstance(row, dict) and "step" in row and "time" in row:
                rows.append({k: float(v) if isinstance(v, str) else v for k, v in row.items()})
        return rows

    def history(self) -> dict[str, dict[int, tuple[float, float]]]:
        """``{metric: {step: (time, value)}}``; a step that a resumed run repeated has its last value.

        A repeated value keeps its first time: the pair then stays what a tracking store was already told.
        """
        table: dict[str, dict[int, tuple[float, float]]] = {}
        for row in self.read_metrics():
            for name, value in row.items():
                if name not in ("step", "time"):
                    points = table.setdefault(name, {})
                    if not same_number(points.get(row["step"], (0.0, None))[1], value):
                        points[row["step"]] = (row["time"], value)
        return {name: dict(sorted(points.items())) for name, points in table.items()}

    # -- results -----------------------------------------------------------------------------------

    def write_results(self, results: Mapping[str, Any]) -> Path:
        """Write results.json and say where."""
        write_json_atomic(self.path / "results.json", results)
        return self.path / "results.json"

    def results(self) -> dict[str, Any] | None:
        """The content of results.json; None when nothing has been evaluated."""
        return self._read_json("results.json") if (self.path / "results.json").exists() else None

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise IveditError(f"cannot read {self.path / name}: {error}") from error
        if not isinstance(value, dict):
            raise IveditError(f"{self.path / name} does not hold a table of names and values")
        return value

    # -- log ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def logging_to_file(self, level: int = logging.INFO) -> Iterator[logging.Logger]:
        """While open, the `ivedit` logger and Python warnings are also written to log.txt."""
        handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        handler.setLevel(level)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger = logging.getLogger("ivedit")
        previous = logger.level
        logger.setLevel(min(level, previous) if previous else level)
        targets = (logger, logging.getLogger("py.warnings"))
        for target in targets:
            target.addHandler(handler)
        try:
            yield logger
        finally:
            for target in targets:
                target.removeHandler(handler)
            logger.setLevel(previous)
            handler.close()


def is_run_folder(path: str | Path) -> bool:
    """Whether a run was begun there that `resume=` can continue; status.json is the last file that `create` writes."""
    return all((Path(path) / name).is_file() for name in ("config.yaml", "status.json"))


def describe_environment() -> dict[str, Any]:
    """What the run depends on, found without importing any of it."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    # The code that runs, where it lies in a repository of its own; else the project that is being worked in.
    here = str(Path(__file__).parent)
    git = ("git", "-C", here) if _ask("git", "-C", here, "ls-files", "--error-unmatch", __file__) else ("git",)
    commit = _ask(*git, "rev-parse", "HEAD")
    gpus = _ask("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "git_commit": commit,
        "git_changed": bool(_ask(*git, "status", "--porcelain", "--untracked-files=no")) if commit else None,
        "command": [Path(sys.argv[0]).name, *(redact(argument) for argument in sys.argv[1:])],
        "cpu_count": os.cpu_count(),
        "cpu": _cpu_name(),
        "gpus": list_gpus((gpus or "").splitlines()),
    }


def list_gpus(lines: Sequence[str]) -> list[str]:
    """Each kind of GPU once, with its number: ``4 x NVIDIA H200 (143771 MiB), driver 580.159.04``.

    Args:
        lines: ``name, memory, driver`` of each GPU as nvidia-smi prints it; what is in the listed form stays as it is.
    """
    found = []
    for line, count in Counter(lines).items():
        parts = line.rsplit(", ", 2)
        text = f"{parts[0]} ({parts[1]}), driver {parts[2]}" if len(parts) == 3 else line
        found.append(f"{count} x {text}" if count > 1 else text)
    return found


def redact(text: str) -> str:
    """Hide the password of every ``scheme://user:password@host`` in ``text``: run folders are shared."""
    return _PASSWORD.sub(r"\1***@", text)


def same_number(a: float | None, b: float | None) -> bool:
    """Equal, where nan equals nan."""
    return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))


def _ask(*command: str) -> str | None:
    """Output of a helper program; None when it is absent, fails or hangs, which only leaves a field empty."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
