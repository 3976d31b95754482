"""Pairs per second from local parquet, with decoding and resizing, against plain HF `datasets` and a DataLoader.

    nice python benchmarks/data_path.py --out benchmarks/records/data_path.json

A set of JPEG pairs of about one megapixel is written to a temporary parquet file as HF `datasets` writes it (structs of
bytes and path, row groups of 100). Each round then times, in turn and on the same two cores: `data.reader=set`
through the loader that training uses, and what one writes by hand: `load_dataset("parquet")`, a transform that
decodes, scales and crops with Pillow, and `torch.utils.data.DataLoader` with as many processes. Both give batches of
(B, 3, H, W) bytes for source and target. A third arm gives the hand-written one our scaling, so that the share of the
scaling can be told from that of the reading. In order is what filling the cache does; shuffled is training without a
cache. The rows of the filled cache are training batches (latents and texts of Wan 2.1's size), nothing decoded.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

HEIGHT, WIDTH, BATCH = 480, 832, 8


def write_pairs(path: Path, count: int, side: int) -> int:
    """`count` pairs cut from photographs; returns the mean bytes of an image."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import skimage.data
    from PIL import Image

    photos = [Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "coffee", "chelsea", "rocket")]
    rng = np.random.default_rng(0)
    cells: dict[str, list[Any]] = {"source": [], "target": []}
    size = 0
    for number in range(count):
        photo = photos[number % len(photos)]
        edge = int(rng.integers(200, min(photo.size)))
        left, top = (int(rng.integers(0, extent - edge)) for extent in photo.size)
        cut = photo.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.BICUBIC)
        # Photographs have grain, which upscaling took away and which decides how long a JPEG takes to decode.
        grain = rng.normal(0, 4, (side, side, 1))
        for what, image in (("source", cut), ("target", cut.convert("L").convert("RGB"))):
            grainy = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))
            data = io.BytesIO()
            grainy.save(data, "JPEG", quality=90)
            cells[what].append({"bytes": data.getvalue(), "path": None})
            size += len(data.getvalue())
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    words = pa.array([f"make number {i} grey" for i in range(count)])
    table = pa.table({"source": pa.array(cells["source"], kind), "target": pa.array(cells["target"], kind),
                      "instruction": words})  # fmt: skip
    pq.write_table(table, path, row_group_size=100)
    return size // (2 * count)


def config(folder: Path, pairs: int, **data: Any) -> Any:
    from ivedit.config import Config

    cfg = Config()
    values = {
        "reader": "set", "path": str(folder / "pairs.parquet"), "pairs": pairs, "validation_pairs": 1,
        "height": HEIGHT, "width": WIDTH, "workers": 2, "cache_dir": str(folder / "cache"), **data,
    }  # fmt: skip
    for name, value in values.items():
        setattr(cfg.data, name, value)
    cfg.train.batch_size = BATCH
    return cfg


def ours(folder: Path, pairs: int, workers: int, shuffled: bool) -> Iterator[tuple[Any, Any]]:
    from ivedit.data import order
    from ivedit.data.pixels import read_chunks
    from ivedit.data.record import build_reader

    reader = build_reader(config(folder, pairs, cache="none" if shuffled else "memory"), "train")
    indices = order.epoch_permutation(0, 0, len(reader)) if shuffled else range(len(reader))
    chunks = [[int(i) for i in indices[start : start + BATCH]] for start in range(0, len(reader), BATCH)]
    for batch in read_chunks(reader, chunks, workers=workers):
        assert not batch.bad
        yield batch.source, batch.target


def by_hand(folder: Path, pairs: int, workers: int, shuffled: bool, scale: Callable[..., Any]) -> Iterator[Any]:
    import torch
    from datasets import load_dataset
    from torch.utils.data import DataLoader

    images = load_dataset(
        "parquet", data_files=str(folder / "pairs.parquet"), split="train", cache_dir=str(folder / "hf")
    )
    from datasets import Image as ImageColumn

    images = images.cast_column("source", ImageColumn()).cast_column("target", ImageColumn())
    images = images.select(range(1, pairs + 1))

    def transform(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {what: [scale(image.convert("RGB")) for image in rows[what]] for what in ("source", "target")}

    loader = DataLoader(
        images.with_transform(transform), batch_size=BATCH, shuffle=shuffled, num_workers=workers,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    for batch in loader:
        yield batch["source"], batch["target"]


def with_pillow(image: Any) -> Any:
    """Cover, then crop the centre, as torchvision's Resize and CenterCrop do to a Pillow image."""
    import numpy as np
    import torch
    from PIL import Image

    scale = max(WIDTH / image.width, HEIGHT / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - WIDTH) // 2, (image.height - HEIGHT) // 2
    image = image.crop((left, top, left + WIDTH, top + HEIGHT))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def with_ours(image: Any) -> Any:
    from ivedit.data import images

    return images.pixels(image, HEIGHT, WIDTH)


def pace(batches: Iterator[Any]) -> float:
    """Pairs per second over all batches, the start of loader processes and of the reader included."""
    import torch

    started, count = time.perf_counter(), 0
    for source, target in batches:
        assert source.shape[1:] == target.shape[1:] == (3, HEIGHT, WIDTH) and source.dtype == torch.uint8
        count += len(source)
    return count / (time.perf_counter() - started)


def cached(folder: Path, pairs: int, cache: str, epochs: int) -> float:
    """Training batches per second times pairs of each, from a filled cache of latents and texts of Wan 2.1's size."""
    import torch

    from ivedit.data.datamodule import PairDataModule
    from ivedit.data.text import TextStates

    def latents(pixels: Any) -> Any:
        return torch.nn.functional.interpolate(pixels[:, 0], (60, 104)).repeat(1, 6, 1, 1)[:, :16, None]

    def texts(words: list[str]) -> Any:
        mask = torch.zeros(len(words), 512, dtype=torch.bool)
        mask[:, :24] = True
        return TextStates(torch.ones(len(words), 512, 4096, dtype=torch.bfloat16), mask)

    module = PairDataModule(config(folder, pairs, cache=cache), latents, texts, "benchmark")
    module.setup()
    list(module.train_dataloader())
    started, count = time.perf_counter(), 0
    for _ in range(epochs):
        for batch in module.train_dataloader():
            count += len(batch["ids"])
    return count / (time.perf_counter() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=320)
    parser.add_argument("--side", type=int, default=1024, help="height and width of the stored images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="loader processes of every arm")
    parser.add_argument("--out", type=Path, help="write the record here")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    given = parser.parse_args()

    import datasets
    import torch

    from ivedit.runfolder import describe_environment

    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
    if cores:
        os.sched_setaffinity(0, cores)
    load = os.getloadavg()[0]
    record: dict[str, Any] = {
        "benchmark": "data_path", "pairs": given.pairs, "side": given.side, "size": [HEIGHT, WIDTH], "batch": BATCH,
        "workers": given.workers, "cores": len(cores), "note": given.note, "arms": {}, "ratios": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ivedit-benchmark-") as place:
        folder = Path(place)
        record["bytes_per_image"] = write_pairs(folder / "pairs.parquet", given.pairs + 1, given.side)
        for how, shuffled in (("in order", False), ("shuffled", True)):
            arms: dict[str, Callable[[], Iterator[Any]]] = {
                "set": lambda s=shuffled: ours(folder, given.pairs, given.workers, s),
                "datasets": lambda s=shuffled: by_hand(folder, given.pairs, given.workers, s, with_pillow),
                "datasets, our scaling": lambda s=shuffled: by_hand(folder, given.pairs, given.workers, s, with_ours),
            }
            for arm in arms.values():  # HF converts the file to Arrow, we unpack row groups: both once, not timed
                pace(arm())
            paces: dict[str, list[float]] = {name: [] for name in arms}
            for number in range(given.rounds):
                names = list(arms) if number % 2 == 0 else list(reversed(arms))
                for name in names:
                    paces[name].append(round(pace(arms[name]()), 2))
            for name, values in paces.items():
                record["arms"][f"{name}, {how}"] = values
            for name in list(arms)[1:]:
                ratios = [a / b for a, b in zip(paces["set"], paces[name], strict=True)]
                record["ratios"][f"set to {name}, {how}"] = [round(ratio, 3) for ratio in ratios]
        for cache in ("memory", "disk"):
            few = min(given.pairs, 64)
            record["arms"][f"filled cache ({cache})"] = [
                round(cached(folder, few, cache, 8), 1) for _ in range(given.rounds)
            ]
    record["load"] = [round(load, 1), round(os.getloadavg()[0], 1)]
    about = describe_environment()
    record["environment"] = {
        "cpu": about["cpu"], "git_commit": about["git_commit"], "python": about["python"],
        "packages": {name: about["packages"].get(name) for name in ("torch", "datasets", "pyarrow", "pillow", "numpy")},
    }  # fmt: skip
    print("| arm | pairs/s (median) | lowest to highest |\n|---|---|---|")
    for name, values in record["arms"].items():
        print(f"| {name} | {statistics.median(values):,.1f} | {min(values):,.1f} to {max(values):,.1f} |")
    for name, values in record["ratios"].items():
        print(f"{name}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
