"""A task that trains nothing: a real `ivedit.run` with folder, metrics, checkpoints and states, in half a second.

It goes down ``loss = (lr - 0.1)^2 + seed / 1000`` by steps, so that every value is a function of the settings and the
step, however often the run was cut and continued. Files in the working directory tell it more: ``hold`` (a step: wait
after it until the file is gone or somebody asks the run to stop), ``deaf`` (holding, it does not listen), ``fail-NAME``
(raise its text, where NAME is the run's), ``nan-NAME`` (no success), ``pause`` (seconds a step).
"""

import json
import os
import signal
import time
from pathlib import Path

from ivedit.errors import Stopped
from ivedit.runfolder import write_json_atomic
from ivedit.tasks import register


def told(name: str) -> str:
    return Path(name).read_text() if Path(name).exists() else ""


@register("light")
def light(cfg, run, tracker):
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append("stopped by SIGTERM"))
    steps, stop = cfg.train.max_steps, Path(os.environ["IVEDIT_STOP_FILE"])
    stop_wanted = stop.exists
    checkpoint = run.checkpoints / "last.ckpt"
    start = json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0
    tracker.log_params({"steps": steps, "trained_parameters": 1000 + cfg.train.warmup_steps})
    with open(run.path / "starts.txt", "a") as file:
        file.write(f"{start} {os.getpid()} {os.environ['OMP_NUM_THREADS']}\n")
    for step in range(start + 1, steps + 1):
        time.sleep(float(told("pause") or 0))
        loss = (cfg.train.lr - 0.1) ** 2 + cfg.seed / 1000 + 1 / step
        if told(f"fail-{cfg.name}"):
            raise RuntimeError(told(f"fail-{cfg.name}"))
        tracker.log_metrics({"train/loss": loss, "val/loss": loss, "train/steps_per_second": 50.0}, step)
        if step < steps:
            if step % cfg.train.checkpoint_every == 0:
                write_json_atomic(checkpoint, {"step": step})
            while str(step) in (told("hold"), told(f"hold-{cfg.train.lr}")):
                time.sleep(0.02)
                if (asked or stop_wanted()) and not Path("deaf").exists():
                    break
            if asked:
                write_json_atomic(checkpoint, {"step": step})
                raise Stopped(asked[0])
            if stop_wanted():
                raise Stopped(stop.read_text().splitlines()[0])
    success = float("nan") if told(f"nan-{cfg.name}") else 1 - loss
    (run.checkpoints / "editor.safetensors").write_bytes(b"weights")
    metrics = {"success": {"mean": success if success == success else None}}
    run.write_results({"name": cfg.name, "rows": {cfg.name: {"metrics": metrics, "seconds_per_clip": 0.5}}})
    tracker.log_metrics({"eval/success": success}, 0)
