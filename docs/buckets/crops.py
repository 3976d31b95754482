"""Draws crops.png: what training sees of seven photographs, with one size for all and with a ladder of sizes.

The photographs are scikit-image's and scikit-learn's own. Run it from the repository's root:

    python docs/buckets/crops.py
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import sklearn.datasets
from matplotlib.patches import Rectangle
from PIL import Image

from ivedit.config.buckets import Size, bucket_sizes, nearest_bucket, size_name

ONE = "480x832"


def photographs() -> list[np.ndarray]:
    """Whole photographs, and cuts of some, from tall to wide: (H, W, 3) uint8."""
    china = sklearn.datasets.load_sample_image("china.jpg")
    flower = sklearn.datasets.load_sample_image("flower.jpg")
    return [
        skimage.data.rocket()[:, 240:420], flower[:, 180:420], skimage.data.astronaut()[:, 80:464],
        skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee()[40:380], china[70:345],
    ]  # fmt: skip


def draw(axes: plt.Axes, photo: np.ndarray, sizes: list[Size]) -> None:
    """The photograph, faded where the crop to its nearest size leaves it out."""
    height, width = photo.shape[:2]
    size = sizes[nearest_bucket((height, width), sizes)]
    scale = min(height / size[0], width / size[1])
    box = (scale * size[0], scale * size[1])
    top, left = (height - box[0]) / 2, (width - box[1]) / 2
    rows, columns = np.mgrid[:height, :width]
    inside = (rows >= top) & (rows < top + box[0]) & (columns >= left) & (columns < left + box[1])
    faded = 0.25 * photo + 0.75 * 255
    axes.imshow(np.where(inside[..., None], photo, faded).astype(np.uint8))
    axes.add_patch(Rectangle((left, top), box[1], box[0], fill=False, edgecolor="#d9822b", linewidth=2))
    kept = box[0] * box[1] / (height * width)
    axes.set_title(f"{size_name(size)}\n{100 * kept:.0f}% kept", fontsize=9)
    axes.set_axis_off()


def main() -> None:
    """Two rows: one size for all, and the ladder of its area."""
    photos = photographs()
    ladder = bucket_sizes([f"auto:{ONE}"])
    ratios = [photo.shape[1] / photo.shape[0] for photo in photos]
    figure, rows = plt.subplots(
        2, len(photos), figsize=(13, 4.7), width_ratios=[max(0.55, ratio) for ratio in ratios], layout="constrained"
    )
    for axes, sizes, name in zip(rows, ([bucket_sizes([ONE])[0]], ladder), (ONE, f"auto:{ONE}"), strict=True):
        for place, photo in zip(axes, photos, strict=True):
            draw(place, photo, sizes)
        axes[0].text(
            -0.25, 0.5, f"data.buckets=[{name}]", rotation=90, va="center", ha="right",
            transform=axes[0].transAxes, fontsize=10,
        )  # fmt: skip
    pixels = io.BytesIO()
    figure.savefig(pixels, dpi=85)
    sheet = Image.open(pixels).convert("RGB").quantize(256, Image.Quantize.MEDIANCUT)
    sheet.save(Path(__file__).with_name("crops.png"), optimize=True)


if __name__ == "__main__":
    main()
