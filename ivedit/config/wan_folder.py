"""What the JSON files of a Wan pipeline's folder say, and which folders are refused. Imports nothing heavy.

The rules of the configuration ask here before a run folder is made, and the loader and the plan before anything is
built: one check, at two moments. What the two streams of this package cannot run is refused by name, because a
half-right run (one expert of two, an image-to-video transformer without its image) would be silently wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivedit.errors import ConfigError, IveditError

__all__ = [
    "COMPONENTS", "CONFIG_FILES", "WAN_TEXT_LENGTH", "FolderConfigs", "cached_folder", "check_transformer_config",
    "flow_shift", "read_folder", "require_index", "vae_factors",
]  # fmt: skip

COMPONENTS = ("transformer", "vae", "text_encoder")
CONFIG_FILES = ("model_index.json", "scheduler/scheduler_config.json", "vae/config.json", "transformer/config.json")
WAN_TEXT_LENGTH = 512
"""What WanPipeline pads texts to when nothing else is said."""

_CLASSES = {
    "transformer": ("WanTransformer3DModel",),
    "vae": ("AutoencoderKLWan",),
    "text_encoder": ("UMT5EncoderModel", "T5EncoderModel"),
}
_SIZES = ("num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim", "text_dim")
_INSTEAD = "use a Wan text-to-video folder, e.g. of Wan-AI/Wan2.1-T2V-1.3B-Diffusers, or wan-sprites"
_ONE_EXPERT = "use Wan2.1-T2V or Wan2.2-TI2V-5B"


@dataclass(frozen=True)
class FolderConfigs:
    """The content of a pipeline's JSON files.

    Attributes:
        index: of model_index.json.
        scheduler, vae, transformer: of the parts' configs.
        text_encoder: the same; None where the folder has none.
        text_length: tokens that texts are padded to.
    """

    index: dict[str, Any]
    scheduler: dict[str, Any]
    vae: dict[str, Any]
    transformer: dict[str, Any]
    text_encoder: dict[str, Any] | None
    text_length: int


def read_folder(
    folder: Path, name: str, components: Sequence[str] = COMPONENTS, *, whole: bool = True
) -> FolderConfigs:
    """Read a pipeline's JSON files and see that this package can run what they describe; no weight is looked at.

    Args:
        folder: the one with model_index.json.
        name: what messages call it.
        components: of `COMPONENTS`, those that will be read.
        whole: False: what is not there is not missed (the hub's cache may hold a part of a pipeline).

    Raises:
        ConfigError: no pipeline, one of another kind or with two experts, a part that is missing or of another class,
            broken JSON, or a transformer that `check_transformer_config` refuses.
    """
    if whole:
        require_index(folder, name)
    try:
        index = _read(folder / "model_index.json", name, whole)
        _check_index(folder, name, index, components, whole)
        scheduler, vae, transformer = (_read(folder / file, name, whole) for file in CONFIG_FILES[1:])
        encoder = _read(folder / "text_encoder" / "config.json", name, whole and "text_encoder" in components)
        if transformer:
            check_transformer_config(name, transformer, vae_factors(vae)[0] if vae else None)
            _check_sizes(name, transformer)
        if scheduler:
            flow_shift(name, scheduler)
        length = _read(folder / "ivedit.json", name, False).get("text_length")
        return FolderConfigs(index, scheduler, vae, transformer, encoder or None, int(length or WAN_TEXT_LENGTH))
    except ConfigError:
        raise
    except IveditError as error:
        raise ConfigError(str(error)) from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{name}: its JSON files hold what no Wan pipeline's do ({error}); {_INSTEAD}") from error


def require_index(folder: Path, name: str) -> None:
    """ConfigError when the folder is no pipeline's."""
    if not (folder / "model_index.json").is_file():
        raise ConfigError(
            f"{name} has no model_index.json; give the folder of a diffusers pipeline (the one above transformer/ and "
            "vae/)"
        )


def cached_folder(hub: str) -> Path | None:
    """Where the hub's cache has at least the model_index.json of OWNER/NAME; None: it would have to be fetched."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(hub, "model_index.json")
    except ValueError:  # not the form of a name: whoever fetches it says so
        return None
    return Path(found).parent if isinstance(found, str) else None


def _read(file: Path, name: str, needed: bool) -> dict[str, Any]:
    """The object that a JSON file holds; an empty one where it is not there and not needed."""
    shown = file.name if file.parent.name not in (*COMPONENTS, "scheduler") else f"{file.parent.name}/{file.name}"
    if not file.is_file():
        if needed:
            raise ConfigError(f"{name} is incomplete: {shown} is missing; fetch it again")
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{name}: {shown} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{name}: {shown} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{name}: {shown} holds no JSON object; fetch it again")
    return content


def _check_index(folder: Path, name: str, index: Mapping[str, Any], components: Sequence[str], whole: bool) -> None:
    """Refuse pipelines of other kinds, two experts, and folders that lack a part."""
    kind = index.get("_class_name")
    if kind != "WanPipeline" and index:
        what = f"is a {kind} folder" if kind else "has a model_index.json that names no pipeline (`_class_name`)"
        raise ConfigError(f"{name} {what}; only WanPipeline (text-to-video) folders can be a backbone: {_INSTEAD}")
    second = index.get("transformer_2")
    if second and any(second):
        raise ConfigError(
            f"{name} has a second expert (`transformer_2`, Wan2.2 A14B). One expert alone would be silently wrong, "
            f"so it is refused; {_ONE_EXPERT}"
        )
    if index.get("boundary_ratio") is not None:
        raise ConfigError(
            f"{name} switches experts at boundary_ratio = {index['boundary_ratio']} (Wan2.2 A14B), which is refused; "
            f"{_ONE_EXPERT}"
        )
    if not whole:
        return
    wanted = [*components, "scheduler"] + (["tokenizer"] if "text_encoder" in components else [])
    missing = [part for part in wanted if not (folder / part).is_dir()]
    if missing:
        raise ConfigError(f"{name} is incomplete: no {', '.join(missing)} folder; fetch it again")
    for part in components:
        declared = (index.get(part) or [None, None])[1]
        if declared not in _CLASSES[part]:
            raise ConfigError(f"{name}: {part} is declared as {declared}; supported: {', '.join(_CLASSES[part])}")


def _check_sizes(name: str, config: Mapping[str, Any]) -> None:
    for key in _SIZES:
        value = config.get(key)
        if type(value) is not int or value < 1:
            said = "is missing" if key not in config else f"= {json.dumps(value)} is no size"
            raise ConfigError(f"{name}: transformer/config.json: {key} {said}; fetch it again")


def check_transformer_config(name: str, config: Mapping[str, Any], latent_channels: int | None) -> None:
    """Refuse transformers that are not plain text-to-video.

    Args:
        name: folder, for the message.
        config: `transformer/config.json`.
        latent_channels: z_dim of the folder's VAE, where there is one.

    Raises:
        IveditError: image-to-video or VACE transformer, patches over time, or channels that are not the VAE's.
    """
    problems = []
    class_name = config.get("_class_name", "WanTransformer3DModel")
    if class_name != "WanTransformer3DModel":
        problems.append(f"its transformer is a {class_name}; only WanTransformer3DModel (text-to-video) can be run")
    for key in ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"):
        if config.get(key) is not None:
            problems.append(f"transformer.{key} = {config[key]} is an image-to-video transformer's")
    channels_in = config.get("in_channels", 16)
    channels_out = config.get("out_channels") or channels_in
    if channels_in != channels_out:
        problems.append(
            f"transformer.in_channels = {channels_in} but out_channels = {channels_out}: it reads more than the noisy "
            "latents (an image-to-video or channel-concatenation transformer)"
        )
    if latent_channels is not None and channels_in != latent_channels:
        problems.append(f"transformer.in_channels = {channels_in} but the VAE's z_dim = {latent_channels}")
    patch = tuple(config.get("patch_size", (1, 2, 2)))
    if len(patch) != 3 or patch[0] != 1:
        problems.append(f"transformer.patch_size = {list(patch)}: the first entry must be 1 (no patches over time)")
    if problems:
        raise IveditError(f"{name} cannot be used as backbone: {'; '.join(problems)}. U{_INSTEAD[1:]}")


def vae_factors(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(z_dim, space factor, time factor) of an `AutoencoderKLWan` config.

    The factors follow from the structure: 2^(levels - 1) times the patch size, and 2^(number of temporal
    downsamplings). The config's own `scale_factor_*` entries are not derived from it and may be stale.
    """
    levels = config.get("dim_mult", [1, 2, 4, 4])
    temporal = config.get("temperal_downsample", [False, True, True])
    space = 2 ** (len(levels) - 1) * (config.get("patch_size") or 1)
    return int(config.get("z_dim", 16)), int(space), int(2 ** sum(bool(t) for t in temporal))


def flow_shift(name: str, scheduler_config: Mapping[str, Any]) -> float:
    """The shift k of sigma = k r / (1 + (k - 1) r) that the folder's scheduler samples with.

    Raises:
        IveditError: the config has neither `flow_shift` (UniPC, DPM++) nor `shift` (FlowMatchEuler).
    """
    for key in ("flow_shift", "shift"):
        value = scheduler_config.get(key)
        if value is not None:
            return float(value)
    raise IveditError(
        f"{name}: scheduler_config.json has neither `flow_shift` nor `shift`; add the flow shift the model samples with"
    )
