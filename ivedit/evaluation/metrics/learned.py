"""Metrics that read pictures and words through trained networks: CLIP, DINO and PickScore, from folders of weights.

Nothing is ever fetched: `evaluation.weights` names a folder for each network (transformers' layout, safetensors), and a
metric whose folder is not named is skipped, with that reason in the table. Frames are prepared here as the folder's
``preprocessor_config.json`` says, on the device, without torchvision.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ivedit.errors import ConfigError
from ivedit.evaluation.metrics.base import ClipMetric, Reference, Unavailable, register_metric

__all__ = ["Preprocess", "named_weights", "weights_digest"]

_FRAMES = 32
"""Frames that a network sees at once."""


def weights_digest(place: Path) -> str:
    """sha256 of a file; of a folder: over its safetensors files, in the order of their names.

    Raises:
        ConfigError: the folder has none (pickled weights of whole networks are never loaded).
    """
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"evaluation.weights: {place} holds no .safetensors file; pickled weights are never loaded")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def named_weights(evaluation: Any, name: str) -> Path:
    """Where a network's weights lie, which are those that the configuration expects.

    Raises:
        Unavailable: they are not named.
        ConfigError: they are others than ``evaluation.sha256`` says.
    """
    if name not in evaluation.weights:
        raise Unavailable(f"no evaluation.weights.{name}")
    place = Path(evaluation.weights[name]).expanduser().resolve()
    wanted, found = evaluation.sha256.get(name), _digest_once(place)
    if wanted and wanted != found:
        raise ConfigError(f"evaluation.sha256.{name}: the weights in {place} have sha256 {found}, not {wanted}")
    return place


_digest_once = cache(weights_digest)


@dataclass(frozen=True)
class Preprocess:
    """How a network wants its pictures: scaled so that the shorter side is ``side`` (or to ``size``), centre cut out.

    Attributes:
        side: Shorter side after scaling; None: scale to ``size`` whatever the aspect.
        size: (H, W) that comes out.
        mean, std: Of the colours.
    """

    side: int | None
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, folder: Path) -> Preprocess:
        """As the folder's ``preprocessor_config.json`` says. ConfigError when it does not say it."""
        path = folder / "preprocessor_config.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            size, crop = content["size"], content.get("crop_size")
            side = int(size["shortest_edge"]) if isinstance(size, dict) and "shortest_edge" in size else None
            if isinstance(size, int):
                side = size
            out = crop if content.get("do_center_crop", crop is not None) else size
            out = {"height": out, "width": out} if isinstance(out, int) else out
            return cls(side, (int(out["height"]), int(out["width"])), tuple(content["image_mean"]),
                       tuple(content["image_std"]))  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"evaluation.weights: {path} does not say how to prepare pictures ({error!r})") from error

    def __call__(self, frames: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] to (N, 3, *size) float32, normalised."""
        height, width = frames.shape[-2:]
        if self.side is None:
            scaled = self.size
        else:
            factor = self.side / min(height, width)
            scaled = (max(self.side, int(height * factor)), max(self.side, int(width * factor)))
        if scaled != (height, width):
            frames = F.interpolate(frames.float(), scaled, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((s - o) // 2 for s, o in zip(scaled, self.size, strict=True))
        if top < 0 or left < 0:
            raise ConfigError(f"evaluation.weights: pictures scaled to {scaled} cannot be cut to {self.size}")
        frames = frames[..., top : top + self.size[0], left : left + self.size[1]]
        mean, std = (torch.tensor(x, device=frames.device).view(3, 1, 1) for x in (self.mean, self.std))
        return (frames - mean) / std


class _Network:
    """A frozen network of a folder on a device: frames, and for CLIP-like ones texts, to unit vectors."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoModel, AutoTokenizer

        try:
            self.model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            self.model = self.model.eval().to(device)
            self.words = hasattr(self.model, "text_projection")
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True) if self.words else None
        except (OSError, ValueError, KeyError, ImportError) as error:
            first = str(error).strip().splitlines()[0]
            raise ConfigError(f"evaluation.weights: {folder} cannot be loaded: {first}") from error
        self.prepare, self.device = Preprocess.of(folder), device

    def images(self, frames: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] to (N, D)."""
        found = []
        for part in frames.split(_FRAMES):
            pixels = self.prepare(part.to(self.device))
            if self.words:
                pooled = self.model.vision_model(pixel_values=pixels).pooler_output
                found.append(self.model.visual_projection(pooled))
            else:
                found.append(self.model(pixel_values=pixels).last_hidden_state[:, 0])
        return F.normalize(torch.cat(found).float(), dim=-1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """N texts to (N, D)."""
        if not self.words or self.tokenizer is None:
            raise ConfigError("evaluation.weights.clip: this network reads no words")
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        wanted = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
        return F.normalize(self.model.text_projection(self.model.text_model(**wanted).pooler_output).float(), dim=-1)


_LOADING = threading.Lock()


@cache
def _network(folder: Path, device: torch.device) -> _Network:
    return _Network(folder, device)


class _LearnedMetric(ClipMetric):
    """A metric of what a network makes of frames; networks are loaded once and shared by all rows and metrics."""

    higher_is_better = True

    def __init__(self, folder: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.folder = folder

    def network(self, clip: Tensor) -> _Network:
        with _LOADING:  # rows are measured in threads
            return _network(self.folder, clip.device)

    def frames(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B, T, D) unit vectors of the edits."""
        return reference.shared(f"frames {self.folder}", edited, lambda: self._embed(edited))

    def source(self, reference: Reference) -> Tensor:
        """(B, T, D) unit vectors of the sources."""
        return reference.kept(f"frames {self.folder}", lambda: self._embed(reference.source))

    def _embed(self, clip: Tensor) -> Tensor:
        return self.network(clip).images(clip.flatten(0, 1)).unflatten(0, clip.shape[:2])

    def captions(self, clip: Tensor, texts: Sequence[str] | None) -> tuple[Tensor, Tensor]:
        """(B, D) unit vectors, and (B,) which of them are of a caption that is known."""
        words = list(texts) if texts is not None else [""] * len(clip)
        known = torch.tensor([bool(text) for text in words], device=clip.device)
        return self.network(clip).texts(words), known


class TextAlignment(_LearnedMetric):
    """Mean cosine of frames and the caption of the wanted result, times ``scale`` (Hessel et al., arXiv 2104.08718)."""

    def __init__(self, folder: Path, scaled: bool = False, **kwargs: Any) -> None:
        super().__init__(folder, **kwargs)
        self.scaled = scaled

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B,); no value without a caption."""
        words, known = self.captions(edited, reference.captions)
        cosine = (self.frames(edited, reference) * words[:, None]).sum(dim=-1).mean(dim=1)
        if self.scaled:
            cosine = cosine * self.network(edited).model.logit_scale.exp().item()
        return torch.where(known, cosine, torch.nan)


class TextDirection(_LearnedMetric):
    """Cosine of how frames changed and how the captions changed (Gal et al., arXiv 2108.00946), mean over frames."""

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B,); no value without both captions, or for an edit that the network takes for its source."""
        after, known = self.captions(edited, reference.captions)
        before, also = self.captions(edited, reference.source_captions)
        moved = self.frames(edited, reference) - self.source(reference)
        cosine = F.cosine_similarity(moved, (after - before)[:, None].expand_as(moved), dim=-1)
        changed = (moved.norm(dim=-1) > 1e-6).all(dim=1) & ((after - before).norm(dim=-1) > 1e-6)
        return torch.where(known & also & changed, cosine.mean(dim=1), torch.nan)


class FrameConsistency(_LearnedMetric):
    """Mean cosine of neighbouring frames; ``first``: averaged with each frame's with the first (VBench, 2311.17982)."""

    def __init__(self, folder: Path, first: bool = False, **kwargs: Any) -> None:
        super().__init__(folder, **kwargs)
        self.first = first

    def measure(self, edited: Tensor, reference: Reference) -> Tensor:
        """(B,); no value for a single frame. A frozen clip has 1: read it beside the motion ratio."""
        frames = self.frames(edited, reference)
        if frames.shape[1] < 2:
            return torch.full((len(edited),), torch.nan, device=edited.device)
        near = (frames[:, 1:] * frames[:, :-1]).sum(dim=-1).mean(dim=1)
        if not self.first:
            return near
        return (near + (frames[:, 1:] * frames[:, :1]).sum(dim=-1).mean(dim=1)) / 2


def _register(name: str, needs: str, make: Any, about: Mapping[str, Any]) -> None:
    @register_metric(name, needs=needs, better="higher", **about)
    def factory(evaluation: Any) -> ClipMetric:
        return make(named_weights(evaluation, needs))


_register("clip_text", "clip", TextAlignment, {
    "label": "CLIP text", "range": "-1 to 1", "digits": 3,
    "meaning": "How well the frames fit the caption of the wanted result.",
    "source": "cosine of CLIP's frame and caption, mean over frames (arXiv 2104.08718)",
})  # fmt: skip
_register("clip_direction", "clip", TextDirection, {
    "label": "CLIP direction", "range": "-1 to 1", "digits": 3,
    "meaning": "Whether the frames changed the way that the captions did.",
    "source": "cosine of CLIP's change of frames and change of captions (arXiv 2108.00946)",
})  # fmt: skip
_register("clip_frames", "clip", FrameConsistency, {
    "label": "CLIP frames", "range": "-1 to 1", "digits": 4,
    "meaning": "Whether neighbouring frames show the same thing; a frozen clip has 1.",
    "source": "cosine of CLIP's neighbouring frames, mean",
})  # fmt: skip
_register("dino_frames", "dino", lambda folder: FrameConsistency(folder, first=True), {
    "label": "DINO frames", "range": "-1 to 1", "digits": 4,
    "meaning": "Whether the subject stays the same; a frozen clip has 1.",
    "source": "cosine of DINO's class token with the frame before and with the first, mean (VBench, arXiv 2311.17982)",
})  # fmt: skip
_register("pickscore", "pickscore", lambda folder: TextAlignment(folder, scaled=True), {
    "label": "PickScore", "range": "about 15 to 25", "digits": 2,
    "meaning": "How people who choose between pictures for this caption would like the frames.",
    "source": "scaled cosine of a CLIP trained on choices (arXiv 2305.01569), mean over frames",
})  # fmt: skip
