"""A component's weights laid out on a device, empty, and filled from its files one tensor at a time.

A model is built without memory (on torch's meta device), each weight given its storage type, and only then allocated
where it will stay. So neither 14 billion weights nor their float32 copy ever exist on the host, however they are
stored: 8 processes of one machine need the memory of 8 tensors beside the GPUs'.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ivedit.backbone.folders import weight_files
from ivedit.errors import IveditError

__all__ = ["allocate", "keep_dtype", "read_transformer"]


def keep_dtype(transformer: Any, dtype: torch.dtype) -> None:
    """Cast a transformer in place, keeping float32 where Wan keeps it (only `from_pretrained` does that itself)."""
    keep = tuple(getattr(transformer, "_keep_in_fp32_modules", None) or ())
    tensors = [*transformer.named_parameters(), *transformer.named_buffers()]
    for name, tensor in tensors:
        if tensor.is_floating_point():
            kept = any(part in name for part in keep)
            tensor.data = tensor.data.to(torch.float32 if kept else dtype)


def allocate(part: str, config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Any:
    """A component on ``device`` whose weights are not set.

    Args:
        part: transformer, vae or text_encoder.
        config: its config file's content.
        dtype: storage type; what Wan keeps in float32 stays so.
        device: ``meta``: shapes only.
    """
    with torch.device("meta"):
        model = _layout(part, config)
    keep_dtype(model, dtype)
    model = model.to_empty(device=device)
    if part == "transformer":  # its tables are buffers that the constructor computes
        with torch.device("cpu"):
            model.rope = type(model.rope)(
                model.config.attention_head_dim, tuple(model.config.patch_size), model.config.rope_max_seq_len
            ).to(device)
    if part == "text_encoder":
        model.tie_weights()  # allocating has given the embedding and its second name a tensor each
    return model.eval()


def _layout(part: str, config: dict[str, Any]) -> Any:
    if part == "text_encoder":
        from transformers import UMT5Config, UMT5EncoderModel

        return UMT5EncoderModel(UMT5Config(**config))
    import diffusers

    cls = {"transformer": diffusers.WanTransformer3DModel, "vae": diffusers.AutoencoderKLWan}[part]
    return cls.from_config(config)


@torch.no_grad()
def read_transformer(folder: Path, config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Any:
    """The transformer of a pipeline folder on ``device``, equal to what diffusers' `from_pretrained` reads.

    Args:
        folder: with ``transformer/*.safetensors``, one file or shards with an index, of any floating type.
        config: ``transformer/config.json``.
        dtype: storage type, as in `allocate`.
        device: where each tensor goes as soon as it is read.

    Raises:
        IveditError: a file is damaged, or the files' weights are not those of the config.
    """
    model = allocate("transformer", config, dtype, device)
    own = dict(model.named_parameters())
    left = set(own)
    for file in (folder / "transformer" / name for name in weight_files(folder, "transformer")):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (not a dict)
                    if name not in own:
                        if any(part in name for part in model._keys_to_ignore_on_load_unexpected or ()):
                            continue
                        raise IveditError(f"{file}: {name} is no weight of this transformer's config")
                    tensor = tensors.get_tensor(name)
                    if tensor.shape != own[name].shape:
                        raise IveditError(
                            f"{file}: {name} is {tuple(tensor.shape)}, but the config asks for {tuple(own[name].shape)}"
                        )
                    own[name].copy_(tensor)
                    left.discard(name)
        except (SafetensorError, OSError) as error:
            raise IveditError(f"{file} cannot be read ({error}); fetch it again") from error
    if left:
        raise IveditError(f"{folder}/transformer lacks {len(left)} weights, e.g. {min(left)}; fetch it again")
    return model
