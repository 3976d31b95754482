"""The tiny pipeline's text encoder: a word-level tokenizer and a two-layer UMT5 encoder.

Trained on captions and instructions by predicting, from each token's state, the word itself (a third of the inputs is
masked, the others are not) and its three neighbours on either side. The masked words make the encoder understand a
scene, the unmasked ones make it keep every word, and the neighbours bind a colour to its shape. Then it is frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from ivedit.pretrain.module import PretrainModule

__all__ = ["TEXT_LENGTH", "TextEncoderModule", "build_text_encoder", "build_tokenizer", "tokenize"]

#: Padded length that the editor uses with the tiny pipeline: every caption and instruction fits.
TEXT_LENGTH = 64
_NEIGHBOURS = (-3, -2, -1, 0, 1, 2, 3)


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word; ``</s>`` ends every text, as T5's does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    specials = ["<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {word: i for i, word in enumerate([*specials, *sorted(set(words))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=512,
    )


def build_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    """UMT5 at toy size: 2 layers, width 128."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=64,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], length: int = TEXT_LENGTH) -> Tensor:
    """Token ids (len(texts), length) int16, padded with 0."""
    ids = torch.zeros(len(texts), length, dtype=torch.int16)
    for start in range(0, len(texts), 20000):
        rows = tokenizer(list(texts[start : start + 20000]), truncation=True, max_length=length)["input_ids"]
        for i, row in enumerate(rows):
            ids[start + i, : len(row)] = torch.tensor(row, dtype=torch.int16)
    return ids


class TextEncoderModule(PretrainModule):
    """Trains the text encoder; ``texts``: (M, L) int16 token ids of captions and instructions."""

    def __init__(self, encoder: UMT5EncoderModel, texts: Tensor, **settings: Any) -> None:
        super().__init__(encoder, **settings)
        self.texts = texts
        width, vocabulary = encoder.config.d_model, encoder.config.vocab_size
        self.heads = nn.Linear(width, len(_NEIGHBOURS) * vocabulary)  # thrown away afterwards

    def trained_parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.heads.parameters()]

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        generator = self.generator(step)
        rows = torch.randint(len(self.texts), (256,), generator=generator)
        ids = self.texts[rows].long().to(self.device)
        masked = (torch.rand(ids.shape, generator=generator).to(self.device) < 0.3) & (ids > 1)
        real = ids != 0
        states = self.model(ids.masked_fill(masked, 3), real.long()).last_hidden_state
        logits = self.heads(states).unflatten(-1, (len(_NEIGHBOURS), -1))
        length = ids.shape[1]
        padded = F.pad(ids, (3, 3))
        targets = torch.stack([padded[:, 3 + n : 3 + n + length] for n in _NEIGHBOURS], dim=2)
        targets = targets.masked_fill((targets == 0) | ~real[..., None], -100)
        loss = F.cross_entropy(logits.flatten(0, 2).float(), targets.flatten(), ignore_index=-100)
        own = logits[:, :, 3].argmax(-1) == ids
        return loss, {
            "masked_word_accuracy": (own & masked).sum() / masked.sum().clamp(min=1),
            "own_word_accuracy": (own & real & ~masked).sum() / (real & ~masked).sum().clamp(min=1),
        }
