"""Where GPU memory ran out and what to change: one message, with what each change saves by the plan's arithmetic."""

from __future__ import annotations

import dataclasses
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ivedit.config.compose import RESUME_MAY_CHANGE
from ivedit.errors import IveditError

__all__ = ["MemoryShortage", "shortage_told"]

FILLING, LOADING, SAMPLING, TRAINING = "filling the cache", "loading the backbone", "sampling", "training"
_PLACES = {
    "ivedit.training.module": TRAINING,
    "ivedit.training.ema": TRAINING,
    "ivedit.training.optim": TRAINING,
    "ivedit.training.muon": TRAINING,
    "ivedit.data": FILLING,
    "ivedit.training.encoders": FILLING,
    "ivedit.backbone.loading": LOADING,
    "ivedit.backbone.weights": LOADING,
    "ivedit.backbone.parts": LOADING,
    "ivedit.editor.build": LOADING,
    "ivedit.pipeline": SAMPLING,
    "ivedit.evaluation": SAMPLING,
}
"""Modules in which a step of a run happens; of the ones that an error went through, the innermost counts."""


class MemoryShortage(IveditError):
    """GPU memory ran out; the message is one line that says where, what was asked for and what was free.

    Attributes:
        place: One of the places above; empty where the error came from none of them.
        total: Memory of the GPU in words, as torch says it; empty where it does not.
    """

    def __init__(self, error: BaseException, cfg: Any) -> None:
        asked, free, self.total = _told(str(error))
        self.place = _place(error)
        self._cfg = cfg
        where = {
            TRAINING: f"a training step of batch {cfg.train.batch_size}",
            FILLING: "filling the cache of latents and texts",
            LOADING: "loading the backbone",
            SAMPLING: "sampling for the evaluation",
            "": "the run",
        }[self.place]
        details = [f"{asked} asked for"] if asked else []
        if free:
            details.append(f"{free} free" + (f" of {self.total}" if self.total else ""))
        super().__init__(f"GPU memory ran out in {where}" + (f": {', '.join(details)}" if details else ""))

    def advice(self) -> str:
        """What to change and how much each change saves, the cheapest first; planned now, which takes seconds."""
        try:
            return "\n".join(self._advice(self._cfg))
        except Exception as error:  # a plugin's editor may not run without content; the shortage must be told anyway
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            return (
                f"no plan can be made for this configuration ({first}); try train.batch_size, "
                "backbone.gradient_checkpointing=true, editor.width, in this order"
            )

    def _advice(self, cfg: Any) -> Iterator[str]:
        from ivedit.planning.backbones import backbone_configs
        from ivedit.planning.estimate import Planner
        from ivedit.planning.levers import levers
        from ivedit.planning.report import chosen_gpu, gibibytes, lever_lines

        gpu, _ = chosen_gpu("")
        if capacity := _bytes(self.total):
            gpu = dataclasses.replace(gpu, memory_gib=capacity / 2**30)
        plan = Planner(cfg, backbone_configs(cfg.backbone.path, cfg.text.length), gpu)
        if self.place == SAMPLING:
            yield from _of_sampling(plan)
            return
        if self.place == FILLING:
            encoders = gibibytes(float(plan.cache()["encoders_bytes"]))
            yield f"by plan the encoders' weights need {encoders}, besides what they encode at a time:"
            yield "  data.encode_batch=1             fewer images at a time; the cache stays the same"
            yield "  backbone.dtype=bfloat16         half of a text encoder that is stored in float32"
            yield "  data.cache=disk                 it is kept: fill it on a larger GPU, train on this one"
            return
        step = plan.step()
        yield f"by plan a step needs {gibibytes(step.needed)}; what saves memory, the cheapest first:"
        found = levers(plan)
        yield from lever_lines([dataclasses.asdict(lever) for lever in found])
        fits = plan.largest_batch()
        yield f"the largest train.batch_size that fits by plan, all else as it is: {fits}"
        kept = [lever.settings for lever in found if _resumes(lever.settings)]
        if kept:
            yield f"resume= takes {', '.join(kept)}; the others need a new run (init_from= keeps the trained weights)"


def _of_sampling(plan: Any) -> Iterator[str]:
    from ivedit.planning.report import gibibytes

    now = plan.sampling()
    peak = gibibytes(now["peak_bytes"])
    yield f"by plan the tensors of a step with {now['frames']} frames need {peak}, without the VAE:"
    factor = plan.spec.time_factor
    fewer = 1 + (now["frames"] - 1) // factor // 2 * factor
    if fewer < now["frames"]:
        cfg = dataclasses.replace(plan.cfg, evaluation=dataclasses.replace(plan.cfg.evaluation, frames=fewer))
        then = type(plan)(cfg, plan.configs, plan.gpu).sampling()
        saves = gibibytes(max(0.0, now["peak_bytes"] - then["peak_bytes"]))
        yield f"  evaluation.frames={fewer}  saves {saves}  shorter clips"
    yield "  evaluation.enabled=false  trains only; evaluate on a larger GPU with python -m ivedit.evaluate"


def _resumes(settings: str) -> bool:
    keys = [part.partition("=")[0] for part in settings.split()]
    return all(key in RESUME_MAY_CHANGE for key in keys)


@contextmanager
def shortage_told(cfg: Any) -> Iterator[None]:
    """An error of torch that memory ran out, or one that came from it, becomes a `MemoryShortage`."""
    try:
        yield
    except Exception as error:
        seen: list[BaseException] = []
        cause: BaseException | None = error
        while cause is not None and cause not in seen:
            if _is_shortage(cause):
                raise MemoryShortage(cause, cfg) from error
            seen.append(cause)
            cause = cause.__cause__ or cause.__context__
        raise


def _is_shortage(error: BaseException) -> bool:
    # torch.OutOfMemoryError, without importing torch; some libraries raise a plain error with the same words
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    words = ("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return named or (isinstance(error, RuntimeError) and any(part in str(error) for part in words))


def _told(message: str) -> tuple[str, str, str]:
    size = r"(\d+(?:\.\d+)? ?[KMGT]?i?B(?:ytes)?)"
    found = (
        re.search(rf"Tried to allocate {size}", message),
        re.search(rf"of which {size} is free", message),
        re.search(rf"total capacity of {size}", message),
    )
    asked, free, total = (match.group(1) if match else "" for match in found)
    return asked, free, total


def _bytes(text: str) -> float | None:
    match = re.fullmatch(r"([\d.]+) ?([KMGT])iB", text)
    return float(match.group(1)) * 1024 ** (1 + "KMGT".index(match.group(2))) if match else None


def _place(error: BaseException) -> str:
    """The innermost place that the error went through."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        name = frame.f_globals.get("__name__", "")
        for module, place in _PLACES.items():
            if name == module or name.startswith(module + "."):
                return place
    return ""
