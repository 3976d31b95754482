"""``--anchors``: ask a judge about clips with known faults and keep what it showed, for every later table."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from ivedit.config.schema import JudgeConfig
from ivedit.data.progress import Progress
from ivedit.errors import ConfigError
from ivedit.evaluation.manifest import EditedClip, read_manifest
from ivedit.judge.anchor_clips import AnchorScene
from ivedit.judge.anchor_scenes import MaskedClip, MaskedScenes, sprite_scenes
from ivedit.judge.anchors import (
    RELATIONS,
    AnchorCases,
    judge_anchors,
    judge_pair_anchors,
    needs,
    pair_anchors,
    verdicts_text,
)
from ivedit.judge.build import asking_of, build_backend, metrics_of
from ivedit.judge.estimate import estimate
from ivedit.judge.record import Record, read_record
from ivedit.judge.verdict import write_verdicts

__all__ = ["anchor_plan", "anchor_scenes", "prove"]

SPRITES = "sprites"


def anchor_scenes(where: str) -> Sequence[AnchorScene]:
    """Scenes to make anchors from.

    Args:
        where: ``sprites``; a folder with a manifest, whose clips with mask and true edit serve; or ``davis=PATH``,
            whose masked things are recoloured.

    Raises:
        ConfigError: none of these.
        IveditError: not one clip can serve.
    """
    if where == SPRITES:
        return sprite_scenes()
    if "=" in where and not Path(where).exists():
        from ivedit.evaluation.sets import read_set

        return MaskedScenes(_SetClips(read_set(where)))
    return MaskedScenes(_ManifestClips(read_manifest([Path(where).expanduser()]).clips))


def prove(settings: JudgeConfig, where: str, record: Path, place: Path) -> str:
    """Judge the anchors, write what they showed to ``place``, and say it in words.

    Args:
        settings: The section ``judge``.
        where: As for `anchor_scenes`.
        record: Where replies are kept and found.
        place: The verdicts, for ``judge.anchors``.

    Raises:
        IveditError: as `ivedit.judge.runner.judge`.
    """
    metrics, asking = metrics_of(settings), asking_of(settings)
    scenes = anchor_scenes(where)
    cases = AnchorCases(scenes, [metric.name for metric in metrics])
    backend = build_backend(settings)
    total = asking.repeats * cases.questions([metric.name for metric in metrics])
    with Progress("judging anchors", total) as progress, Record(record) as kept:
        found = judge_anchors(cases, metrics, backend, kept, asking, progress.advance)
    verdicts = list(found.verdicts)
    if settings.pairwise:
        cases = AnchorCases(scenes, settings.pairwise)
        total = asking.repeats * cases.pair_questions(settings.pairwise)
        with Progress("judging pairwise anchors", total) as progress, Record(record) as kept:
            found = judge_pair_anchors(cases, settings.pairwise, backend, kept, asking, progress.advance)
        verdicts += found.verdicts
    write_verdicts(place, backend.model, backend.sampling, verdicts)
    left_out = [f"left out: {reason}" for reason in getattr(scenes, "reasons", [])]
    head = f"anchors of {backend.model} on {len(scenes)} scenes:"
    return "\n".join([head, verdicts_text(verdicts), *left_out])


def anchor_plan(settings: JudgeConfig, where: str, record: Path | None) -> str:
    """What `prove` will cost, in words; nobody is asked."""
    metrics, asking, scenes = metrics_of(settings), asking_of(settings), anchor_scenes(where)
    cases = AnchorCases(scenes, [m.name for m in metrics if m.name in RELATIONS])
    backend = build_backend(settings, asks=False)
    kept = read_record(record) if record else None
    said = estimate(cases, metrics, backend, kept, asking, needs).text()
    if settings.pairwise:
        pairs, pair_metrics, asks = pair_anchors(AnchorCases(scenes, settings.pairwise), settings.pairwise)
        said += f"\npairwise anchors: {estimate(pairs, pair_metrics, backend, kept, asking, asks).text()}"
    return said


class _Clips(Sequence[MaskedClip]):
    """Masked clips that are read when they are asked for."""

    @overload
    def __getitem__(self, index: int) -> MaskedClip: ...

    @overload
    def __getitem__(self, index: slice) -> list[MaskedClip]: ...

    def __getitem__(self, index: int | slice) -> MaskedClip | list[MaskedClip]:
        if isinstance(index, slice):
            return [self.read(i) for i in range(*index.indices(len(self)))]
        return self.read(range(len(self))[index])

    @abstractmethod
    def read(self, index: int) -> MaskedClip:
        """One clip."""


class _ManifestClips(_Clips):
    def __init__(self, clips: Sequence[EditedClip]) -> None:
        self._clips = [clip for clip in clips if clip.mask is not None and clip.truth is not None]
        if not self._clips:
            raise ConfigError("--anchors: no clip of this manifest has both a mask and a true edit")

    def __len__(self) -> int:
        return len(self._clips)

    def read(self, index: int) -> MaskedClip:
        from ivedit.evaluation.finished import load_clip

        loaded = load_clip(self._clips[index])
        assert loaded.truth is not None
        return MaskedClip(
            loaded.clip.id, loaded.source.numpy(), loaded.mask.numpy(), loaded.truth.numpy(), loaded.clip.instruction
        )


class _SetClips(_Clips):
    def __init__(self, clips: Sequence[object]) -> None:
        self._clips = clips

    def __len__(self) -> int:
        return len(self._clips)

    def read(self, index: int) -> MaskedClip:
        from ivedit.evaluation.files import read_clip, read_mask
        from ivedit.evaluation.sets import SetClip

        clip = self._clips[index]
        assert isinstance(clip, SetClip)
        if clip.mask is None or not clip.object:
            raise ConfigError(f"--anchors: clip {clip.id!r} has no mask, or nobody says of what")
        source = read_clip(clip.source)
        return MaskedClip(clip.id, source.numpy(), read_mask(clip.mask, len(source)).numpy(), object=clip.object)
