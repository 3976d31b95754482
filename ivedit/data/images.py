"""Image files to 8-bit pixels, and the transform that both images of a pair share.

Files come from outside, so they are opened with suspicion: only raster formats (no PostScript, whose decoder starts
a program), the size is looked at before anything is decoded, and every way to be broken ends in one `BadRecord`
that names the file.

Scaling is PyTorch's antialiased bicubic on bytes: Pillow's filter to within two of 255 levels, several times as fast.
JPEGs at least four times as large as wanted are decoded at a half, quarter or eighth of their size (`Image.draft`),
never below twice the wanted size, so that the filter still decides how the result looks.
"""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ivedit.config.buckets import size_name
from ivedit.data.record import BadRecord, PairTexts

__all__ = [
    "MAX_PIXELS", "TRANSFORM", "decode_image", "fit", "fit_mask", "full_size", "image_size", "names_a_side", "pixels",
    "read_image", "to_tensor",
]  # fmt: skip

MAX_PIXELS = 64_000_000  # larger images are refused before they are decoded
_LIMIT = f"{MAX_PIXELS // 10**6} megapixels"
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
TRANSFORM = "cover, bicubic, centre crop, 2"  # part of every cache key: change it when pixels change

_FULL = "ivedit full size"
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 lie on their side

_SIDES = re.compile(r"\b(left|right)(most|wards?|-hand|hand)?\b", re.IGNORECASE)


def names_a_side(texts: PairTexts) -> bool:
    """Whether any of a pair's words name left or right, so that mirroring would make them wrong."""
    words = (*texts.instructions, texts.source_caption or "", texts.target_caption or "")
    return any(_SIDES.search(text) for text in words)


def read_image(
    path: Path, name: str, mode: str = "RGB", at_least: tuple[int, int] | None = None
) -> Image.Image:
    """Decode one image file, upright (EXIF orientation applied), transparency over white.

    Args:
        path: The file.
        name: How an error calls it.
        mode: "RGB", or "L" for masks.
        at_least: (height, width) that the caller scales to; a much larger JPEG may come smaller (see `full_size`).

    Raises:
        BadRecord: missing, empty, not an image, truncated, animated or oversized.
    """
    try:
        size = path.stat().st_size
    except OSError as problem:
        raise BadRecord(name, f"cannot be read ({problem.strerror or problem})") from None
    if not path.is_file():
        raise BadRecord(name, "is not a file")
    if size == 0:
        raise BadRecord(name, "is empty (0 bytes)")
    return decode_image(path, name, mode, at_least)


def decode_image(
    file: Path | BinaryIO, name: str, mode: str = "RGB", at_least: tuple[int, int] | None = None
) -> Image.Image:
    """As `read_image`, for what is open already: an image inside another file.

    Raises:
        BadRecord: not an image, truncated, animated or oversized.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns about large images that our own limit refuses two lines below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
        with image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadRecord(name, f"is oversized: {size_name((height, width))} (height x width), at most {_LIMIT}")
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise BadRecord(name, "is animated; a pair holds single images")
            if at_least is not None and image.format == "JPEG":
                _draft(image, *at_least)
            shrunk = width // image.size[0]
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            flat = _flatten(image, mode, name)
            flat.info[_FULL] = (flat.size[0] * shrunk, flat.size[1] * shrunk)
            return flat
    except Image.DecompressionBombError:
        raise BadRecord(name, f"is oversized: at most {_LIMIT}") from None
    except UnidentifiedImageError:
        raise BadRecord(name, f"is not an image in one of {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as problem:
        # What Pillow's decoders raise for damaged files; SyntaxError is its word for a broken PNG.
        raise BadRecord(name, f"is damaged ({problem})") from None


def _draft(image: Image.Image, height: int, width: int) -> None:
    """Let the decoder shrink a JPEG by 2, 4 or 8, where it stays twice as large as wanted and the size divides."""
    if image.getexif().get(_ORIENTATION, 1) >= 5:
        height, width = width, height
    for factor in (8, 4, 2):
        smaller = image.size[0] // factor, image.size[1] // factor
        whole = image.size[0] % factor == 0 and image.size[1] % factor == 0  # else the crop would move by a fraction
        if whole and smaller[0] >= 2 * width and smaller[1] >= 2 * height:
            image.draft("RGB", smaller)
            return


def full_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the file that an image was decoded from, whether or not the decoder shrank it."""
    return image.info.get(_FULL, image.size)


def image_size(file: Path | BinaryIO) -> tuple[int, int] | None:
    """(height, width) of an image as `read_image` would give it, from its header; None if that cannot be read."""
    if isinstance(file, Path) and not file.is_file():  # opening a pipe would wait for ever
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                width, height = image.size
                # A PNG may hold its orientation behind its pixels, and Pillow would decode them all to look.
                turned = (image.format != "PNG" or "exif" in image.info) and image.getexif().get(_ORIENTATION, 1) >= 5
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError):
        return None  # whoever reads its pixels says what is wrong with it
    return (width, height) if turned else (height, width)


def _flatten(image: Image.Image, mode: str, name: str) -> Image.Image:
    """8 bits per channel without transparency."""
    if image.mode.startswith("I;16") or image.mode == "I":
        # 16-bit greyscale (Pillow opens 16-bit PNGs as I;16): `convert` would clip at 255 instead of scaling.
        grey = np.asarray(image).astype(np.float64) / 65535
        image = Image.fromarray((grey.clip(0, 1) * 255).round().astype(np.uint8))
    elif image.mode == "F":
        raise BadRecord(name, "holds floating-point pixels; save it with 8 bits per channel")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == mode else image.convert(mode)


def _cover(size: tuple[int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """The largest centred box of the wanted shape inside an image of `size` (width, height), to whole pixels."""
    scale = min(size[0] / width, size[1] / height)
    across, down = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size[0] - across) // 2, (size[1] - down) // 2
    return left, top, left + across, top + down


def pixels(image: Image.Image, height: int, width: int) -> Tensor:
    """Scale an RGB image until it covers height x width and cut the centre out: (3, height, width) uint8."""
    if image.size == (width, height):
        return to_tensor(image)
    box = _cover(image.size, height, width)
    if box != (0, 0, *image.size):
        image = image.crop(box)
    # A writable copy, which `torch.from_numpy` wants. Channels stay last in memory: the fast kernel takes them so.
    cut = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)[None]
    if cut.shape[2:] != (height, width):
        cut = torch.nn.functional.interpolate(cut, size=(height, width), mode="bicubic", antialias=True)
    return cut[0].contiguous()


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """As `pixels`, but an image again; one of the same size comes back untouched."""
    if image.size == (width, height):
        return image
    return Image.fromarray(pixels(image, height, width).permute(1, 2, 0).numpy())


def fit_mask(mask: Image.Image, height: int, width: int) -> Tensor:
    """As `pixels`, for a greyscale mask: (1, height, width) float32, 1 where the mask is above half."""
    if mask.size != (width, height):
        mask = mask.resize((width, height), Image.Resampling.BOX, box=_cover(mask.size, height, width))
    return torch.from_numpy(np.asarray(mask) > 127).float()[None]


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image to (3, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)))
