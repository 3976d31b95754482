"""Tiny pipelines with random weights, through the very classes and folders that real checkpoints use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ivedit.backbone import Backbone

WORDS = [
    "make",
    "the",
    "red",
    "circle",
    "blue",
    "square",
    "green",
    "a",
    "remove",
    "star",
    "turn",
    "into",
    "triangle",
    "background",
    "grey",
]
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "num_train_timesteps": 1000}


def tiny_transformer(
    *,
    patch: tuple[int, int, int] = (1, 1, 1),
    heads: int = 2,
    head_dim: int = 24,
    blocks: int = 3,
    channels: int = 4,
    seed: int = 0,
    **more: Any,
) -> Any:
    """A `WanTransformer3DModel` whose biases, norms and tables are random too (fresh ones hide mistakes)."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(seed)
    model = WanTransformer3DModel(
        patch_size=patch,
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=channels,
        out_channels=more.pop("out_channels", channels),
        text_dim=16,
        freq_dim=32,
        ffn_dim=80,
        num_layers=blocks,
        rope_max_seq_len=64,
        **more,
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn_like(weight))
            if "scale_shift_table" in name:
                weight.copy_(0.5 * torch.randn_like(weight))
    return model.eval()


def tiny_vae(*, channels: int = 4, seed: int = 1, **more: Any) -> Any:
    """An `AutoencoderKLWan` of factor 4 in space and 4 in time."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(seed)
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.1 * i for i in range(channels)],
        latents_std=[1.0 + 0.2 * i for i in range(channels)],
        scale_factor_spatial=4,
        scale_factor_temporal=4,
        **more,
    ).eval()


def tiny_text(*, seed: int = 2) -> tuple[Any, Any]:
    """A UMT5 encoder and a word-level tokenizer that ends every text with </s>, as UMT5's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    torch.manual_seed(seed)
    config = UMT5Config(
        vocab_size=len(vocabulary),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        dropout_rate=0.0,
    )
    return UMT5EncoderModel(config).eval(), fast


def tiny_backbone(*, text_length: int = 12, dtype: torch.dtype = torch.float32, **transformer: Any) -> Backbone:
    """A whole tiny backbone in memory."""
    encoder, tokenizer = tiny_text()
    model = tiny_transformer(**transformer)
    return Backbone.from_parts(
        model,
        tiny_vae(channels=model.config.in_channels),
        encoder,
        tokenizer,
        SCHEDULER,
        dtype=dtype,
        text_length=text_length,
    )


def save_pipeline(
    folder: Path, *, text_length: int | None = 12, index: dict[str, Any] | None = None, **more: Any
) -> Path:
    """Write a tiny `WanPipeline` folder as diffusers itself would."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    encoder, tokenizer = tiny_text()
    model = tiny_transformer(**more)
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=tiny_vae(channels=model.config.in_channels),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=model,
    )
    pipe.save_pretrained(folder)
    if text_length is not None:
        (folder / "ivedit.json").write_text(json.dumps({"text_length": text_length}))
    if index:
        path = folder / "model_index.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **index}))
    return folder
