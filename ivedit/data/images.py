"""Image files to 8-bit pixels, and the transform that both images of a pair share.

Files come from outside, so they are opened with suspicion: only raster formats (no PostScript, whose decoder starts
a program), the size is looked at before anything is decoded, and every way to be broken ends in one `BadRecord`
that names the file.
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

from ivedit.data.record import BadRecord, PairTexts

__all__ = ["MAX_PIXELS", "TRANSFORM", "fit", "fit_mask", "image_size", "names_a_side", "read_image", "to_tensor"]

MAX_PIXELS = 64_000_000  # larger images are refused before they are decoded
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
TRANSFORM = "cover, bicubic, centre crop, 1"  # part of every cache key: change it when `fit` changes its pixels

_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 lie on their side

_SIDES = re.compile(r"\b(left|right)(most|wards?|-hand|hand)?\b", re.IGNORECASE)


def names_a_side(texts: PairTexts) -> bool:
    """Whether any of a pair's words name left or right, so that mirroring would make them wrong."""
    words = (*texts.instructions, texts.source_caption or "", texts.target_caption or "")
    return any(_SIDES.search(text) for text in words)


def read_image(path: Path, name: str, mode: str = "RGB") -> Image.Image:
    """Decode one image file, upright (EXIF orientation applied), transparency over white.

    Args:
        path: The file.
        name: How an error calls it.
        mode: "RGB", or "L" for masks.

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
    try:
        with warnings.catch_warnings():
            # Pillow warns about large images that our own limit refuses two lines below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
        with image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadRecord(name, f"is oversized: {width}x{height}, at most {MAX_PIXELS // 10**6} megapixels")
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise BadRecord(name, "is animated; a pair holds single images")
            image.load()
            return _flatten(ImageOps.exif_transpose(image), mode, name)
    except Image.DecompressionBombError:
        raise BadRecord(name, f"is oversized: at most {MAX_PIXELS // 10**6} megapixels") from None
    except UnidentifiedImageError:
        raise BadRecord(name, f"is not an image in one of {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as problem:
        # What Pillow's decoders raise for damaged files; SyntaxError is its word for a broken PNG.
        raise BadRecord(name, f"is damaged ({problem})") from None


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
    return image.convert(mode)


def _cover(size: tuple[int, int], height: int, width: int) -> tuple[float, float, float, float]:
    """The largest centred box of the wanted shape inside an image of `size` (width, height)."""
    scale = min(size[0] / width, size[1] / height)
    left = (size[0] - width * scale) / 2
    top = (size[1] - height * scale) / 2
    return left, top, left + width * scale, top + height * scale


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scale until the image covers height x width and cut the centre out; the same size comes back untouched."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC, box=_cover(image.size, height, width))


def fit_mask(mask: Image.Image, height: int, width: int) -> Tensor:
    """As `fit`, for a greyscale mask: (1, height, width) float32, 1 where the mask is above half."""
    if mask.size != (width, height):
        mask = mask.resize((width, height), Image.Resampling.BOX, box=_cover(mask.size, height, width))
    return torch.from_numpy(np.asarray(mask) > 127).float()[None]


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image to (3, H, W) uint8."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()
