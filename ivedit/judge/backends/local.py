"""A vision-language model of transformers in a folder on this machine, with the frames as separate pictures.

Frames never go through a model's video path, which needs torchvision and resamples time as it likes. Nothing is
fetched, no code of the folder is run, only safetensors are read. The judge is known by the sha256 of its files, so
two folders of one name are two judges.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ivedit.errors import ConfigError
from ivedit.judge.backends.base import NoReply, Repair, Reply
from ivedit.judge.protocol import Question

__all__ = ["LocalBackend", "model_digest"]

_IDENTITY = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""Files that shape a reply: weights, configurations, tokenizer, chat template."""


class LocalBackend:
    """A model for pictures and text (transformers' ``AutoModelForImageTextToText``) in a folder.

    Args:
        folder: With ``config.json``, safetensors, tokenizer, chat template and image processor.
        temperature: 0: the likeliest token each time, whatever the seed.
        top_p: Nucleus of the sampling.
        max_tokens: Of one answer.
        device: ``auto``: a GPU where there is one.
        dtype: Of the weights; ``auto``: bfloat16 on a GPU, float32 elsewhere.

    Raises:
        ConfigError: the folder is missing, holds no such model, or has no chat template.
    """

    name = "local"
    concurrency: int | None = 1

    def __init__(
        self, folder: str | Path, *, temperature: float = 0.7, top_p: float = 1.0, max_tokens: int = 1024,
        device: str = "auto", dtype: str = "auto",
    ) -> None:  # fmt: skip
        import torch

        path = Path(folder)
        if not (path / "config.json").is_file():
            raise ConfigError(f"judge.path={folder}: no config.json there; name the folder of a vision-language model")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "bfloat16" if device.startswith("cuda") else "float32"
        self._device = torch.device(device)
        self._model, self._processor = _load(path, self._device, getattr(torch, dtype))
        tokenizer = self._processor.tokenizer
        self._control = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len, reverse=True)
        self._longest = _longest(self._model.config)
        self._generation = _generation(self._model, temperature, top_p, max_tokens)
        self.model = f"{path.resolve().name}@{model_digest(path)[:12]}"
        self.sampling: Mapping[str, Any] = {
            "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "dtype": dtype,
        }  # fmt: skip
        self._turn = threading.Lock()

    async def ask(self, question: Question, repair: Repair | None = None) -> Reply:
        """One generation, seeded by the question; the same question gets the same reply on the same machine."""
        return await asyncio.to_thread(self._reply, question, repair)

    async def close(self) -> None:
        """Nothing belongs to an event loop; the weights go with this object."""

    def _reply(self, question: Question, repair: Repair | None) -> Reply:
        import torch

        inputs = self._inputs(question, repair)
        asked = inputs["input_ids"].shape[1]
        room = self._longest - asked if self._longest else None
        if room is not None and room < self._generation.max_new_tokens:
            raise NoReply(
                f"the question has {asked} tokens, which leaves {max(room, 0)} of the model's {self._longest} for an "
                "answer; show fewer or smaller frames (judge.frames, judge.largest) or lower judge.max_tokens",
                final=True,
            )
        devices = [self._device] if self._device.type == "cuda" else []
        try:
            # The seed is of the whole process, so one generation at a time.
            with self._turn, torch.random.fork_rng(devices), torch.inference_mode():
                torch.manual_seed(question.seed)
                output = self._model.generate(**inputs, generation_config=self._generation)
        except torch.cuda.OutOfMemoryError as error:
            raise NoReply("the GPU's memory is full; show fewer or smaller frames", final=True) from error
        answer = output[0, asked:]
        ended = bool(torch.isin(answer[-1:].cpu(), torch.tensor(self._generation.eos_token_id)).any())
        return Reply(
            text=self._processor.tokenizer.decode(answer, skip_special_tokens=True),
            model=self.model,
            finish_reason="stop" if ended else "length",
            usage={"prompt_tokens": asked, "completion_tokens": len(answer)},
        )

    def _inputs(self, question: Question, repair: Repair | None) -> Any:
        """What the model reads: the chat template's text with every picture behind its label."""
        import PIL.Image

        def said(text: str) -> dict[str, str]:
            return {"type": "text", "text": _plain(text, self._control)}

        content: list[dict[str, str]] = []
        for part in question.parts:
            if isinstance(part, str):
                content.append(said(part + "\n"))
            else:
                content += [said(f"{part.label}:"), {"type": "image"}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        for role, text in (("assistant", repair.text), ("user", repair.request)) if repair else ():
            messages.append({"role": role, "content": [said(text)]})
        text = self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        pictures = [PIL.Image.open(io.BytesIO(part.png)) for part in question.images]
        return self._processor(text=[text], images=pictures, return_tensors="pt").to(self._device, self._model.dtype)


def _plain(text: str, control: Sequence[str]) -> str:
    """The text without the tokenizer's own words: an instruction must neither end its turn nor claim a picture."""
    for word in control:
        if len(word) > 1 and word in text:
            text = text.replace(word, f"{word[0]} {word[1:]}")
    return text


def model_digest(folder: Path) -> str:
    """sha256 of every file of a model's folder that shapes its replies, and their names; reads all weights."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in _IDENTITY for file in folder.glob(pattern)}):
        with file.open("rb") as stream:
            digest.update(f"{file.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _load(folder: Path, device: Any, dtype: Any) -> tuple[Any, Any]:
    """Model and processor."""
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    from ivedit.quiet import no_library_bars

    try:
        with no_library_bars():
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            if type(config) not in PROCESSOR_MAPPING:
                raise ValueError(f"a model of type {config.model_type} reads no pictures")
            kind = _without_video(PROCESSOR_MAPPING[type(config)])
            processor = kind.from_pretrained(folder, local_files_only=True, backend="pil")
            model, found = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        if missing := sorted(found["missing_keys"]):  # which transformers would fill with noise
            raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
    except Exception as error:  # whatever the libraries say about a folder
        said = " ".join(str(error).split())[:300]
        raise ConfigError(f"judge.path={folder}: no vision-language model that can be loaded ({said})") from error
    if not processor.chat_template:
        raise ConfigError(f"judge.path={folder}: it has no chat template; take a model tuned to answer instructions")
    return model.to(device).eval(), processor


def _without_video(processor: Any) -> Any:
    """The processor class without its video part, which cannot even be loaded where torchvision is missing."""

    class PicturesOnly(processor):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if "video" not in name]

    PicturesOnly.__name__ = processor.__name__  # transformers compares it with the name in the folder
    return PicturesOnly


def _generation(model: Any, temperature: float, top_p: float, max_tokens: int) -> Any:
    """Our sampling and nothing of the folder's (a repetition penalty, say), which no record would show."""
    from transformers import GenerationConfig

    own = model.generation_config
    ends = own.eos_token_id if own.eos_token_id is not None else model.config.get_text_config().eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    pad = own.pad_token_id if own.pad_token_id is not None else (ends[0] if ends else None)
    sampled = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    model.generation_config = GenerationConfig(
        max_new_tokens=max_tokens, eos_token_id=ends, pad_token_id=pad, **(sampled if temperature > 0 else {})
    )
    return model.generation_config


def _longest(config: Any) -> int | None:
    """Tokens that the model can take, question and answer together."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) else None
