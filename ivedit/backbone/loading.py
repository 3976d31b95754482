"""Read a Wan text-to-video pipeline folder (or hub name) part by part.

Only the parts asked for are read: a training step on cached latents needs neither VAE nor text encoder. Weights are
safetensors only and no code from the folder is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ivedit.backbone.folders import missing_weights, resolve_folder, weight_files
from ivedit.backbone.weights import keep_dtype, read_transformer
from ivedit.config.wan_folder import COMPONENTS, FolderConfigs, read_folder
from ivedit.errors import ConfigError, IveditError
from ivedit.quiet import no_library_bars

__all__ = [
    "Checked", "Parts", "align", "check_parts", "keep_dtype", "read_parts", "resolve_folder", "storage_dtype",
]  # fmt: skip

@dataclass
class Parts:
    """What was read from a folder; a part that was not asked for is None."""

    name: str
    transformer: Any
    vae: Any
    text_encoder: nn.Module | None
    tokenizer: Any
    scheduler_config: dict[str, Any]
    vae_config: dict[str, Any]
    transformer_config: dict[str, Any]
    text_length: int


def storage_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Storage type of the frozen weights: `auto` is bfloat16 on a GPU and float32 on a CPU."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise IveditError(f"backbone.dtype: {dtype!r} is not one of auto, float32, bfloat16")
    return known[dtype]


def align(module: nn.Module) -> None:
    """Copy weights that do not start at a multiple of 64 bytes, in place.

    Weights mapped from a file start wherever the file's header ends, and CPU matrix products round differently for
    other alignments: without this a loaded folder would not give the bits of the model that was saved.
    """
    for weight in module.parameters():
        if weight.data_ptr() % 64:
            weight.data = weight.data.clone()


def _require_safetensors(folder: Path, part: str) -> None:
    if not any((folder / part).glob("*.safetensors")):
        raise IveditError(f"{folder}/{part} holds no .safetensors weights; pickled weights are not loaded")
    missing = missing_weights(folder, part)
    if missing:
        more = f" and {len(missing) - 2} more" if len(missing) > 2 else ""
        raise IveditError(f"{folder} is incomplete: {', '.join(missing[:2])}{more} is missing; fetch it again")
    for file in (folder / part / name for name in weight_files(folder, part)):
        try:
            with safe_open(file, framework="pt"):  # compares the header with the file's length, reads no weight
                pass
        except (SafetensorError, OSError) as error:
            raise IveditError(f"{file} cannot be read ({error}); fetch it again") from error


@dataclass(frozen=True)
class Checked:
    """A folder that can be run, and its configs."""

    folder: Path
    configs: FolderConfigs


def check_parts(path: str | Path, components: Sequence[str] = COMPONENTS) -> Checked:
    """Find a pipeline's folder, fetching it where need be, and see that these components can be read; reads no weight.

    Args:
        path: folder, hub name, known name or `wan-sprites`.
        components: any of transformer, vae, text_encoder (which brings its tokenizer).

    Raises:
        ConfigError: what `ivedit.config.wan_folder.read_folder` refuses.
        IveditError: no such folder, or weights that are missing, pickled or cut off.
    """
    unknown = [part for part in components if part not in COMPONENTS]
    if unknown:
        raise IveditError(f"unknown components {unknown}; known: {', '.join(COMPONENTS)}")
    folder = resolve_folder(path, components)
    try:
        configs = read_folder(folder, str(path), components)
    except ConfigError as error:
        raise ConfigError(f"backbone.path: {error}") from error
    for part in components:
        _require_safetensors(folder, part)
    return Checked(folder, configs)


def read_parts(
    path: str | Path,
    *,
    dtype: torch.dtype,
    components: Sequence[str] = COMPONENTS,
    text_length: int | None = None,
    device: torch.device | str = "cpu",
) -> Parts:
    """Read the asked components: the transformer to the device, tensor by tensor, the smaller others onto the CPU.

    Args:
        path: as of `check_parts`.
        dtype: storage type of transformer and text encoder (what Wan keeps in float32 stays so; the VAE is float32).
        components: as of `check_parts`.
        text_length: overrides the folder's own.
        device: of the transformer. On a CPU its weights are mapped from the files where their type allows it.

    Raises:
        IveditError: as `check_parts`, or weights that are not those of their config.
    """
    checked = check_parts(path, components)
    folder, configs = checked.folder, checked.configs

    import diffusers
    import transformers

    def diffusers_part(part: str, part_dtype: torch.dtype) -> Any:
        if part not in components:
            return None
        cls = {"transformer": diffusers.WanTransformer3DModel, "vae": diffusers.AutoencoderKLWan}[part]
        return cls.from_pretrained(
            folder, subfolder=part, torch_dtype=part_dtype, use_safetensors=True, local_files_only=True
        )

    text_encoder = tokenizer = None
    with no_library_bars():
        if "text_encoder" in components:
            text_encoder = getattr(transformers, configs.index["text_encoder"][1]).from_pretrained(
                folder, subfolder="text_encoder", dtype=dtype, use_safetensors=True, local_files_only=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, subfolder="tokenizer", local_files_only=True, trust_remote_code=False
            )
        vae = diffusers_part("vae", torch.float32)
        if "transformer" in components and torch.device(device).type != "cpu":
            transformer = read_transformer(folder, configs.transformer, dtype, torch.device(device))
        else:
            transformer = diffusers_part("transformer", dtype)
    for module in (transformer, vae, text_encoder):
        if module is not None:
            align(module)
    return Parts(
        name=str(path),
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler_config=configs.scheduler,
        vae_config=configs.vae,
        transformer_config=configs.transformer,
        text_length=text_length or configs.text_length,
    )
