"""A judge from the settings ``judge.*``."""

from __future__ import annotations

from ivedit.config.schema import JudgeConfig
from ivedit.errors import ConfigError
from ivedit.judge.backends.base import Backend
from ivedit.judge.judgements import Asking
from ivedit.judge.protocol import Metric, get_metric
from ivedit.judge.showing import Shown

__all__ = ["asking_of", "build_backend", "metrics_of"]


def build_backend(settings: JudgeConfig, *, asks: bool = True) -> Backend:
    """The judge that ``judge.backend`` names.

    Args:
        settings: The section ``judge``.
        asks: False for a dry run: a server's key is not looked for, since nothing is sent.

    Raises:
        ConfigError: there is none to build, or its settings cannot work.
    """
    kind = settings.backend
    temperature, top_p, max_tokens = settings.temperature, settings.top_p, settings.max_tokens
    for name in {"http": ("base_url", "model"), "local": ("path",), "replay": ("path",)}.get(kind, ()):
        if not getattr(settings, name):
            raise ConfigError(f"judge.backend={kind} needs judge.{name}")
    if kind == "http":
        from ivedit.judge.backends.http import HttpBackend

        return HttpBackend(
            str(settings.base_url), str(settings.model), temperature=temperature, top_p=top_p, max_tokens=max_tokens,
            request=settings.request, key_env=settings.key_env if asks else None, timeout=settings.timeout,
        )  # fmt: skip
    if kind == "local":
        from ivedit.judge.backends.local import LocalBackend

        return LocalBackend(str(settings.path), temperature=temperature, top_p=top_p, max_tokens=max_tokens)
    if kind == "replay":
        from ivedit.judge.backends.replay import ReplayBackend

        return ReplayBackend(str(settings.path), settings.model)
    raise ConfigError("judge.backend=none: there is no judge; set judge.backend=http, local or replay")


def asking_of(settings: JudgeConfig) -> Asking:
    """How that judge is asked."""
    return Asking(
        repeats=settings.repeats,
        seed=settings.seed,
        shown=Shown(settings.frames, settings.smallest, settings.largest),
        concurrency=settings.concurrency,
        per_minute=settings.requests_per_minute,
        attempts=settings.attempts,
        returned_model=settings.returned_model,
    )


def metrics_of(settings: JudgeConfig) -> list[Metric]:
    """What is asked."""
    return [get_metric(name) for name in settings.metrics]
