"""One frame of each of two videos, as an image pair: sets of edited clips serve for training on images."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from ivedit.data import order
from ivedit.data.record import BadRecord
from ivedit.errors import IveditError

__all__ = ["VIDEOS", "count_frames", "frame_number", "is_video", "read_frame"]

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg")


def is_video(place: object) -> bool:
    """Whether a place is a file that is named like a video."""
    return isinstance(place, Path) and place.suffix.lower() in VIDEOS


def frame_number(which: str, count: int, seed: int, name: str) -> int:
    """Which of `count` frames: `first`, `middle`, or `random`, drawn once from the seed and the pair's name."""
    if which == "random":
        drawn = order.uniform(seed, "frame", 0, np.array([zlib.crc32(name.encode())], dtype=np.int64))[0]
        return min(int(drawn * count), count - 1)
    return (count - 1) // 2 if which == "middle" else 0


def count_frames(path: Path, name: str) -> int:
    """Frames of a video, from its packets: nothing is decoded.

    Raises:
        BadRecord: no readable video.
    """
    import av

    from ivedit.media import VideoReader

    try:
        with VideoReader(path), av.open(str(path)) as container:
            count = sum(1 for packet in container.demux(video=0) if packet.size)
    except (IveditError, av.error.FFmpegError, OSError) as problem:
        raise BadRecord(name, str(problem)) from None
    if count == 0:
        raise BadRecord(name, "has no frames")
    return count


def read_frame(path: Path, number: int, name: str) -> Image.Image:
    """One frame of a video, RGB and upright.

    Raises:
        BadRecord: no readable video, or it ends before that frame.
    """
    from ivedit.media import VideoReader

    try:
        with VideoReader(path) as reader:
            for i, (_, frame) in enumerate(reader):
                if i == number:
                    return Image.fromarray(frame.permute(1, 2, 0).numpy())
    except IveditError as problem:
        raise BadRecord(name, str(problem)) from None
    raise BadRecord(name, f"ends before frame {number}")
