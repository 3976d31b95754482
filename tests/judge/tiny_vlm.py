"""Tiny vision-language models in folders: transformers' own classes, a byte-level tokenizer, random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ivedit.judge.backends.local import LocalBackend
from ivedit.judge.protocol import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}PICTURE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _tokenizer(special: tuple[str, ...], picture: str) -> PreTrainedTokenizerFast:
    """One token for each byte and each special word; ``picture`` is what the chat template writes for one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    bytes_only.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        chat_template=TEMPLATE.replace("PICTURE", picture),
    )  # fmt: skip


def make_tiny_vlm(folder: Path, seed: int = 0, longest: int = 8192) -> Path:
    """A Qwen2.5-VL with 115,000 random weights: configuration, tokenizer, chat template, image processor."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from ivedit.quiet import no_library_bars

    tokenizer = _tokenizer(SPECIAL, "<|vision_start|><|image_pad|><|vision_end|>")
    number = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": longest,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
            "bos_token_id": number["<|endoftext|>"], "eos_token_id": number["<|im_end|>"],
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
            "fullatt_block_indexes": [1], "patch_size": 14, "window_size": 112,
        },
        image_token_id=number["<|image_pad|>"], video_token_id=number["<|video_pad|>"],
        vision_start_token_id=number["<|vision_start|>"], vision_end_token_id=number["<|vision_end|>"],
    )  # fmt: skip
    torch.manual_seed(seed)
    with no_library_bars():
        Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pictures = {
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor", "patch_size": 14,
        "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 28 * 28, "max_pixels": 56 * 56,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures), encoding="utf-8")
    return folder


def make_tiny_onevision(folder: Path) -> Path:
    """Another family, LLaVA-OneVision, with 50,000 random weights: its own way to write pictures, no vision tokens."""
    import torch
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    from ivedit.quiet import no_library_bars

    tokenizer = _tokenizer((*SPECIAL[:3], "<image>", "<video>"), "<image>")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**small, image_size=28, patch_size=14),
        text_config=Qwen2Config(
            **small, num_key_value_heads=2, vocab_size=len(tokenizer), max_position_embeddings=8192,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"), image_grid_pinpoints=[[28, 28]],
    )  # fmt: skip
    torch.manual_seed(0)
    with no_library_bars():
        LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"size": {"height": 28, "width": 28}, "image_grid_pinpoints": [[28, 28]]}
    named = {"processor_class": "LlavaOnevisionProcessor"}
    pictures = {**named, **size, "image_processor_type": "LlavaOnevisionImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures), encoding="utf-8")
    words = {
        **named, "num_image_tokens": 4, "vision_feature_select_strategy": "full", "image_token": "<image>",
        "video_token": "<video>",
    }  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps(words), encoding="utf-8")
    return folder


def teach(folder: Path, lessons: list[tuple[Question, str]], enough: float = 0.03) -> None:
    """Train the model in ``folder`` until it gives each question its answer, and write it back; a few seconds."""
    import torch

    from ivedit.quiet import no_library_bars

    backend = LocalBackend(folder)
    model, processor = backend._model.train(), backend._processor
    batches = []
    for question, answer in lessons:
        asked = dict(backend._inputs(question, None))
        said = processor.tokenizer(answer + "<|im_end|>", return_tensors="pt", add_special_tokens=False)["input_ids"]
        start = asked["input_ids"].shape[1]
        asked["input_ids"] = torch.cat([asked["input_ids"], said], dim=1)
        asked["attention_mask"] = torch.ones_like(asked["input_ids"])
        asked["mm_token_type_ids"] = torch.cat([asked["mm_token_type_ids"], torch.zeros_like(said)], dim=1)
        labels = asked["input_ids"].clone()
        labels[:, :start] = -100  # only the answer is learnt
        batches.append((asked, labels))
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(400):
        losses = [model(**asked, labels=labels).loss for asked, labels in batches]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        if max(loss.item() for loss in losses) < enough:
            break
    with no_library_bars():
        model.save_pretrained(folder)
