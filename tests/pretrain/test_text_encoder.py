"""One token a word, the end mark last: what `WanPipeline` and the editors rely on."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from ivedit.pretrain.text_encoder import TEXT_LENGTH, build_tokenizer, tokenize
from ivedit.sprites import all_words, captions, sample_pairs, sample_scenes


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(all_words())


def test_every_word_of_the_world_is_one_token_of_its_own(tokenizer: PreTrainedTokenizerFast):
    rows = [tokenizer(word)["input_ids"] for word in all_words()]
    assert all(len(row) == 2 and row[1] == tokenizer.eos_token_id for row in rows)
    first = [row[0] for row in rows]
    assert tokenizer.unk_token_id not in first
    assert len(set(first)) == len(set(all_words())) == len(tokenizer) - 4


def test_the_empty_text_is_the_end_mark_alone(tokenizer: PreTrainedTokenizerFast):
    assert tokenizer("")["input_ids"] == [1]
    assert tokenize(tokenizer, [""], 4).tolist() == [[1, 0, 0, 0]]


def test_every_text_ends_with_the_end_mark_and_fits(tokenizer: PreTrainedTokenizerFast):
    index = torch.arange(300)
    texts = captions(sample_scenes(9, index, "pretrain"), 9, index)
    for split in ("train", "test_phrasing", "test_three"):
        texts += sample_pairs(9, index[:100], split).instruction
    ids = tokenize(tokenizer, texts)
    assert ids.shape == (600, TEXT_LENGTH)
    length = (ids != 0).sum(1)
    assert length.max() < TEXT_LENGTH  # nothing was cut off
    assert (ids[torch.arange(600), length - 1] == 1).all()
    assert ((ids == 1).sum(1) == 1).all()
    assert not (ids == tokenizer.unk_token_id).any()


def test_case_and_punctuation_do_not_matter_and_other_words_are_unknown(tokenizer: PreTrainedTokenizerFast):
    plain = tokenizer("a red circle , moving right")["input_ids"]
    assert tokenizer("A Red circle, moving RIGHT")["input_ids"] == plain
    assert tokenizer("a zebra")["input_ids"][1] == tokenizer.unk_token_id
