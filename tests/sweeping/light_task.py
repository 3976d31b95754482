"""A task that trains nothing: a real `ivedit.run` with folder, metrics, checkpoints and states, in half a second.

It goes down ``loss = (lr - 0.1)^2 + seed / 1000`` by steps, so that every value is a function of the settings and the
step, however often the run was cut and continued. Beside what a run does it can be told to misbehave, by files in the
working directory: ``pause`` (seconds a step), ``fail-<name>`` (raise), ``nan-<name>``.
"""

import json
import os
import signal
import time
from pathlib import Path

from ivedit.errors import Stopped
from ivedit.runfolder import write_json_atomic
from ivedit.tasks import register


def told(name: str, default: str = "") -> str:
    return Path(name).read_text() if Path(name).exists() else default


@register("light")
def light(cfg, run, tracker):
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append("stopped by SIGTERM"))
    steps, stop = cfg.train.max_steps, os.environ.get("IVEDIT_STOP_FILE")
    checkpoint = run.checkpoints / "last.ckpt"
    start = json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0
    tracker.log_params({"steps": steps, "trained_parameters": 1000 + cfg.train.warmup_steps})
    with open(run.path / "starts.txt", "a") as file:
        file.write(f"{start} {os.getpid()} {os.environ['OMP_NUM_THREADS']}\n")
    for step in range(start + 1, steps + 1):
        time.sleep(float(told("pause", "0")))
        loss = (cfg.train.lr - 0.1) ** 2 + cfg.seed / 1000 + 1 / step
        if told(f"fail-{cfg.name}"):
            raise RuntimeError(told(f"fail-{cfg.name}"))
        tracker.log_metrics({"train/loss": loss, "val/loss": loss, "train/steps_per_second": 50.0}, step)
        if step % cfg.train.checkpoint_every == 0 or asked:
            write_json_atomic(checkpoint, {"step": step})
        if step < steps:
            if asked:
                raise Stopped(asked[0])
            if stop and os.path.exists(stop):
                raise Stopped(Path(stop).read_text().splitlines()[0])
    success = float("nan") if told(f"nan-{cfg.name}") else 1 - loss
    (run.checkpoints / "editor.safetensors").write_bytes(b"weights")
    metrics = {"success": {"mean": success if success == success else None}}
    run.write_results({"name": cfg.name, "rows": {cfg.name: {"metrics": metrics, "seconds_per_clip": 0.5}}})
    tracker.log_metrics({"eval/success": success}, 0)
