"""Small pipelines in the very layouts of the published ones: their configs with every width cut down."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from ivedit.backbone.published import published_config
from tests.backbone.tiny import tiny_text

SMALL = {
    "wan2.1_1.3b": {"num_attention_heads": 1, "num_layers": 2},
    "wan2.1_14b": {"num_attention_heads": 3, "num_layers": 3},
    "wan2.2_5b": {"num_attention_heads": 2, "num_layers": 2},
}
HEAD = 12  # the smallest that three rotary axes share


def small_transformer(name: str, seed: int = 0) -> Any:
    """The published transformer, narrow and shallow, with random biases and norms too."""
    from diffusers import WanTransformer3DModel

    config = published_config(name, "transformer") | SMALL[name]
    config |= {"attention_head_dim": HEAD, "ffn_dim": 40, "text_dim": 16, "freq_dim": 16}
    torch.manual_seed(seed)
    model = WanTransformer3DModel.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def small_vae(name: str) -> Any:
    """The published VAE with four channels at its first level."""
    from diffusers import AutoencoderKLWan

    config = published_config(name, "vae") | {"base_dim": 4, "num_res_blocks": 1}
    if config["decoder_base_dim"]:
        config["decoder_base_dim"] = 6
    torch.manual_seed(1)
    return AutoencoderKLWan.from_config(config).eval()


def save_layout(
    name: str, folder: Path, *, dtype: torch.dtype = torch.float32, shard: str = "10GB", **index: Any
) -> Path:
    """Write a small pipeline of one of the published layouts as diffusers does; ``shard`` is its largest file."""
    from diffusers import UniPCMultistepScheduler, WanPipeline

    encoder, tokenizer = tiny_text()
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder.to(dtype),
        vae=small_vae(name),
        scheduler=UniPCMultistepScheduler.from_config(published_config(name, "scheduler")),
        transformer=small_transformer(name).to(dtype),
        expand_timesteps=name == "wan2.2_5b",
        **index,
    )
    pipe.save_pretrained(folder, max_shard_size=shard)
    return folder


def as_hub_cache(folder: Path, cache: Path, hub: str) -> Path:
    """A pipeline folder as the hub client keeps it: blobs named by their digests, a snapshot of links to them."""
    root, commit = cache / f"models--{hub.replace('/', '--')}", "0" * 40
    for file in (path for path in folder.rglob("*") if path.is_file()):
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(file.read_bytes())
        link = root / "snapshots" / commit / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    return root / "snapshots" / commit
