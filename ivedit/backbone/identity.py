"""What identifies frozen weights: their values where they are loaded, their files where they are not.

An editor is bound to the values of the transformer it was trained in. Cached latents and texts are bound to the
encoders, whose 12 GB need not be read into memory to be recognised: the digests of their files will do.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from ivedit.backbone.folders import resolve_folder

__all__ = ["bits_digest", "encoder_files_fingerprint", "file_digest", "file_state", "weights_digest"]

_ENCODERS = ("vae", "text_encoder")
_BLOB = re.compile(r"[0-9a-f]{64}")


def weights_digest(weights: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, shapes and values, in the order given.

    Values are rounded to bfloat16, so that one checkpoint has one digest in float32 and in bfloat16 storage.
    """
    digest = hashlib.sha256()
    for name, weight in weights:
        values = weight.detach().to(torch.bfloat16)
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(values.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def bits_digest(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Changes with any bit of any weight, and is computed where the weights are: 28 GB in tens of milliseconds.

    Each weight's stored bits are summed as whole numbers, plainly and by row and by column with the place as factor
    (modulo 2^64). One changed value always changes the first sum; it is no defence against somebody's intent.
    """
    digest = hashlib.sha256()
    by_device: dict[torch.device, list[Tensor]] = {}
    for name, weight in weights:
        values = weight.detach()
        if hasattr(values, "to_local"):  # spread over the ranks: this one's part
            values = values.to_local()
        digest.update(f"{name}{tuple(values.shape)}{values.dtype}".encode())
        if not values.numel():
            continue
        bits = values.contiguous().flatten().view(_INTEGERS[values.element_size()])
        bits = bits.view(-1, values.shape[-1] if values.ndim > 1 else 1)
        rows, columns = bits.sum(1, dtype=torch.int64), bits.sum(0, dtype=torch.int64)
        places = [torch.arange(1, len(each) + 1, device=bits.device) for each in (rows, columns)]
        sums = torch.stack([rows.sum(), (rows * places[0]).sum(), (columns * places[1]).sum()])
        by_device.setdefault(sums.device, []).append(sums)
    for held in by_device.values():  # one wait for each device
        digest.update(torch.stack(held).cpu().numpy().data)
    return digest.hexdigest()


def encoder_files_fingerprint(path: str | Path, dtype: torch.dtype, digest: Callable[[Path], str]) -> str:
    """Of the files from which VAE, text encoder and tokenizer are read, and of the type the encoder is stored in.

    Args:
        path: as `backbone.path`; fetched from the hub where it is not on this machine.
        dtype: storage type of the text encoder, which its states depend on.
        digest: of one file, `file_digest` or something that remembers it.

    Raises:
        IveditError: there is no such backbone.
    """
    folder = resolve_folder(path, _ENCODERS)
    total = hashlib.sha256(str(dtype).encode())
    for part in (*_ENCODERS, "tokenizer"):
        for file in sorted((folder / part).iterdir()):
            if file.is_file() and not file.name.startswith(".") and file.suffix in (".json", ".safetensors", ".model"):
                total.update(f"{part}/{file.name} {digest(file)}\n".encode())
    return total.hexdigest()


def file_digest(file: Path) -> str:
    """sha256 of a file. A file of the hub's cache is named by it, so 23 GB need not be read there."""
    blob = file.resolve()
    if blob.parent.name == "blobs" and _BLOB.fullmatch(blob.name):
        return blob.name
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_state(file: Path) -> str:
    """Where a file is, how large and how old: changes when the file does, and costs nothing."""
    state = file.stat()
    return f"{file.resolve()} {state.st_size} {state.st_mtime_ns}"
