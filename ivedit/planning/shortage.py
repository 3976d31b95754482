"""Where GPU memory ran out and what to change: one message, with what each change saves by the plan's arithmetic."""

from __future__ import annotations

import copy
import dataclasses
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ivedit.config.compose import RESUME_MAY_CHANGE
from ivedit.errors import IveditError

__all__ = ["MemoryShortage", "Sampling", "shortage_told"]

FILLING, LOADING, SAMPLING, TRAINING = "filling the cache", "loading the backbone", "sampling", "training"
SCORING = "scoring"
_PLACES = {
    "ivedit.data.text": None,  # moves what others have made
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
    "ivedit.editing": SAMPLING,
    "ivedit.evaluation.metrics": SCORING,
    "ivedit.evaluation.finished": SCORING,
    "ivedit.evaluation": SAMPLING,
    "ivedit.judge": SCORING,
}
"""Modules in which a step of a run happens; of the ones that an error went through, the innermost counts. A longer name
stands before the shorter one that it begins with."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What samples, for the advice.

    Attributes:
        where: What is sampled at once, in words.
        settings: How each change is typed, for `ivedit.planning.levers.sampling_levers`.
        others: (as typed, what it does) of changes that the plan has no numbers for.
        editor: File of the editor, for its shapes; None: as the configuration says.
        clips: Sampled at once; None: ``evaluation.batch_size``.
        overlap: Frames that neighbouring windows share; what is sampled at once is longer.
    """

    where: str
    settings: Mapping[str, str]
    others: tuple[tuple[str, str], ...] = ()
    editor: Path | None = None
    clips: int | None = None
    overlap: int = 1


_OF_A_RUN = Sampling(
    "sampling for the evaluation",
    {"clips": "evaluation.batch_size={}", "frames": "evaluation.frames={}"},
    (("evaluation.enabled=false", "trains only; evaluate on a larger GPU with python -m ivedit.evaluate"),),
)


class MemoryShortage(IveditError):
    """GPU memory ran out; the message is one line that says where, what was asked for and what was free.

    Attributes:
        place: One of the places above; empty where the error came from none of them.
        total: Memory of the GPU in words, as torch says it; empty where it does not.
    """

    def __init__(self, error: BaseException, cfg: Any, sampling: Sampling | None = None) -> None:
        asked, free, self.total = _told(str(error))
        self.place = _place(error)
        if sampling is not None and self.place not in (SAMPLING, LOADING):
            self.place = SAMPLING  # nothing else is done there
        self._cfg, self._sampling = cfg, sampling or _OF_A_RUN
        self._samples = self.place == SAMPLING or sampling is not None
        where = {
            TRAINING: f"a training step of batch {cfg.train.batch_size}",
            FILLING: "filling the cache of latents and texts",
            LOADING: "loading the backbone",
            SAMPLING: self._sampling.where,
            SCORING: "measuring and judging edits",
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
            tried = ["train.batch_size", "backbone.gradient_checkpointing=true", "editor.width"]
            if self._samples:
                named = [typed.format("...", "...") for typed in self._sampling.settings.values()]
                tried = [*named, *(typed for typed, _ in self._sampling.others)]
            return f"no plan can be made for this configuration ({first}); try {', '.join(tried)}, in this order"

    def _advice(self, cfg: Any) -> Iterator[str]:
        if self.place == SCORING:
            yield from _of_scoring(cfg)
            return
        from ivedit.planning.backbones import backbone_configs
        from ivedit.planning.estimate import Planner
        from ivedit.planning.gpus import chosen_gpu
        from ivedit.planning.levers import levers
        from ivedit.planning.report import gibibytes, lever_lines

        gpu, _ = chosen_gpu("")
        if capacity := _bytes(self.total):
            gpu = dataclasses.replace(gpu, memory_gib=capacity / 2**30)
        if self._sampling.editor is not None:
            cfg = _with_editor(cfg, self._sampling.editor)
        plan = Planner(cfg, backbone_configs(cfg.backbone.path, cfg.text.length), gpu)
        if self._samples:
            yield from _of_sampling(plan, self._sampling)
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


def _of_sampling(plan: Any, sampling: Sampling) -> Iterator[str]:
    from ivedit.planning.levers import sampling_levers
    from ivedit.planning.report import gibibytes, lever_lines

    clips = sampling.clips or plan.cfg.evaluation.batch_size
    now = plan.sampling(clips=clips)
    at_once = f"{clips} clips of {now['frames']} frames" if clips > 1 else f"{now['frames']} frames"
    peak, beside = gibibytes(now["peak_bytes"]), gibibytes(float(plan.cache()["encoders_bytes"]))
    yield (
        f"by plan the tensors of a step with {at_once} need {peak}, without what the VAE computes; weights of text "
        f"encoder and VAE: {beside}; what saves memory:"
    )
    found = sampling_levers(plan, sampling.settings, clips=clips, overlap=sampling.overlap)
    if found:
        yield from lever_lines([dataclasses.asdict(lever) for lever in found])
    for typed, what in sampling.others:
        yield f"  {typed}  {what}"


def _of_scoring(cfg: Any) -> Iterator[str]:
    yield "the plan does not count what measures and judges edits; what saves memory:"
    if cfg.judge.backend == "local":
        yield f"  judge.frames={max(2, cfg.judge.frames // 2)} judge.largest={cfg.judge.largest // 2}  shows it less"
        yield "  judge.backend=http  a server holds the judge (docs/judge.md)"
    if cfg.evaluation.weights:
        networks = ", ".join(cfg.evaluation.weights)
        yield f"  evaluation.weights={{}}  leaves out the metrics that need networks: {networks}"
    yield "  python -m ivedit.evaluate FOLDER --device cpu  measures saved edits (evaluation.save_edits) without a GPU"


def _with_editor(cfg: Any, file: Path) -> Any:
    """A copy of ``cfg`` whose editor is the one in ``file``."""
    from ivedit.editor import read_editor_header

    cfg = copy.deepcopy(cfg)
    for name, value in read_editor_header(file)["config"].items():
        if hasattr(cfg.editor, name):
            setattr(cfg.editor, name, value)
    return cfg


def _resumes(settings: str) -> bool:
    keys = [part.partition("=")[0] for part in settings.split()]
    # More GPUs than the checkpoint was made with are refused.
    return all(key in RESUME_MAY_CHANGE and key != "train.devices" for key in keys)


@contextmanager
def shortage_told(cfg: Any, sampling: Sampling | None = None) -> Iterator[None]:
    """An error of torch that memory ran out, or one that came from it, becomes a `MemoryShortage`.

    Args:
        cfg: The `Config` of what is done.
        sampling: Given where nothing is done but loading and sampling; None: a run.
    """
    try:
        yield
    except MemoryShortage:  # told already, by who knows more
        raise
    except Exception as error:
        seen: list[BaseException] = []
        cause: BaseException | None = error
        while cause is not None and cause not in seen:
            if _is_shortage(cause):
                raise MemoryShortage(cause, cfg, sampling) from error
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
        found = (place for module, place in _PLACES.items() if name == module or name.startswith(module + "."))
        if place := next(found, None):
            return place
    return ""
