"""Where a backbone's files are: the shipped folder, a local one, the hub's cache, or the hub itself.

A published name (`ivedit.backbone.published`) means its hub name, or a folder of that very name in the working
directory, which is how weights come to a machine without a network.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from ivedit.backbone.published import Published, published, published_names
from ivedit.config.wan_folder import CONFIG_FILES, require_index
from ivedit.errors import ConfigError, IveditError

__all__ = ["missing_files", "missing_weights", "resolve_folder", "weight_files"]

logger = logging.getLogger("ivedit.backbone")

SHIPPED = "wan-sprites"


def resolve_folder(path: str | Path, components: Sequence[str]) -> Path:
    """Local folder of a pipeline: the shipped one, an existing folder, the hub's cache, or a download from the hub.

    Args:
        path: as `backbone.path` of the configuration.
        components: those that will be read; no others are fetched.

    Raises:
        IveditError: neither a folder with model_index.json nor a name that is on this machine or can be fetched.
    """
    if str(path) == SHIPPED:
        folder = Path(__file__).resolve().parent.parent / "assets" / SHIPPED
        if not (folder / "model_index.json").is_file():
            raise IveditError("backbone.path: wan-sprites is not in this installation; install the package again")
        return folder
    folder = Path(path).expanduser()
    if folder.is_dir():
        try:
            require_index(folder, str(path))
        except ConfigError as error:
            raise ConfigError(f"backbone.path: {error}") from error
        return folder
    if str(path) in published_names():
        known = published(str(path))
        return _from_hub(known.hub, components, known)
    if str(path).count("/") != 1 or str(path).startswith((".", "/", "~")):
        raise IveditError(
            f"backbone.path: {path} is neither a folder nor a hub name such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers nor "
            f"one of wan-sprites, {', '.join(published_names())}"
        )
    known_hubs = {published(name).hub: published(name) for name in published_names()}
    return _from_hub(str(path), components, known_hubs.get(str(path)))


def missing_files(folder: Path, components: Sequence[str]) -> list[str]:
    """Files that reading these components needs and that are not there, relative to the folder."""
    missing = [name for name in CONFIG_FILES if not (folder / name).is_file()]
    for part in components:
        missing += [name for name in (f"{part}/config.json",) if not (folder / name).is_file() and name not in missing]
        missing += missing_weights(folder, part)
    if "text_encoder" in components and not any((folder / "tokenizer").glob("*")):
        missing.append("tokenizer")
    return missing


def weight_files(folder: Path, part: str) -> list[str]:
    """Names of the safetensors files that hold a component: the shards its index names, else its single file.

    Raises:
        IveditError: the index is none, or names files elsewhere.
    """
    stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    index = folder / part / f"{stem}.safetensors.index.json"
    if not index.is_file():
        plain = folder / part / f"{stem}.safetensors"
        return [plain.name] if plain.is_file() else sorted(file.name for file in (folder / part).glob("*.safetensors"))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise IveditError(f"{index} is no index of safetensors files ({error}); fetch it again") from error
    outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        raise IveditError(f"{index} names {outside[0]}, which is no safetensors file beside it")
    return names


def missing_weights(folder: Path, part: str) -> list[str]:
    """Files of `weight_files` that are not there, or that there is none at all."""
    names = weight_files(folder, part)
    return [f"{part}/{name}" for name in names if not (folder / part / name).is_file()] or (
        [] if names else [f"{part}/*.safetensors"]
    )


def _from_hub(hub: str, components: Sequence[str], known: Published | None) -> Path:
    """The hub's cached copy where it is whole, else a download."""
    from huggingface_hub import snapshot_download

    patterns = [*CONFIG_FILES, "ivedit.json"]
    for part in components:
        patterns += [f"{part}/*.json", f"{part}/*.safetensors"]
    if "text_encoder" in components:
        patterns += ["tokenizer/*.json", "tokenizer/*.model", "tokenizer/*.txt"]
    try:
        folder = Path(snapshot_download(hub, allow_patterns=patterns, local_files_only=True))
        if not missing_files(folder, components):
            return folder
    except IveditError:
        raise
    except Exception as error:  # the hub client raises many types for "not cached"
        logger.debug("%s is not in the hub's cache: %s", hub, error)
    size = _size(known, components)
    logger.info("fetching %s from the hub%s ...", hub, f" ({size})" if size else "")
    try:
        folder = Path(snapshot_download(hub, allow_patterns=patterns))
    except Exception as error:  # and for "no such name", "no network", "no access"
        raise IveditError(_not_here(hub, size, known, str(error))) from error
    missing = missing_files(folder, components)
    if missing:  # offline, the hub client is content with any part of it that is cached
        raise IveditError(_not_here(hub, size, known, f"only a part of it is here, without {', '.join(missing[:3])}"))
    return folder


def _size(known: Published | None, components: Sequence[str]) -> str:
    if known is None or not components:
        return ""
    each = {part: known.gigabytes[part] for part in components}
    total = f"{sum(each.values()):.1f} GB"
    if len(each) == 1:
        return total
    return f"{total}: " + ", ".join(f"{part.replace('_', ' ')} {size:g}" for part, size in each.items())


def _not_here(hub: str, size: str, known: Published | None, reason: str) -> str:
    asked = f"{known.name} ({hub})" if known is not None else hub
    target = known.name if known is not None else hub.rpartition("/")[2]
    reason = reason.strip().splitlines()[0].rstrip(".") if reason.strip() else "no reason given"
    return (
        f"backbone.path: {asked} is not on this machine and could not be fetched from the hub"
        f"{f' ({size})' if size else ''}: {reason}. Where there is a network, run "
        f"`hf download {hub} --local-dir {target}`, copy the folder here and give it: backbone=./{target}"
    )
