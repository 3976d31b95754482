"""Clips that play beside each other: what a page shows is what was given, and stays still where nothing moves."""

from __future__ import annotations

import PIL.Image
import PIL.ImageSequence
import pytest
import torch

from ivedit.animation import write_animation


def frames_of(path) -> list[torch.Tensor]:
    with PIL.Image.open(path) as picture:
        frames = [frame.convert("RGB") for frame in PIL.ImageSequence.Iterator(picture)]
    return [torch.frombuffer(bytearray(f.tobytes()), dtype=torch.uint8).view(f.height, f.width, 3) for f in frames]


def moving(length: int, height: int = 16, width: int = 16) -> torch.Tensor:
    """A red column that goes right over blue."""
    clip = torch.zeros(length, 3, height, width, dtype=torch.uint8)
    clip[:, 2] = 255
    for t in range(length):
        clip[t, :, :, t] = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None]
    return clip


def test_every_frame_of_every_clip_is_shown_at_its_time_and_shorter_clips_stop(tmp_path):
    still = torch.full((3, 3, 16, 16), 0.5)
    rows = [{"source": moving(length), "edit": still} for length in (5, 3)]
    panels = [("go right", rows[0]), ("a longer line of words", rows[1])]
    path = write_animation(tmp_path / "new" / "a.gif", panels, fps=8, cell=32)
    with PIL.Image.open(path) as picture:
        assert (picture.n_frames, picture.info["duration"], picture.info["loop"]) == (5, 120, 0)
    frames = frames_of(path)
    red = [(f == torch.tensor([255, 0, 0], dtype=torch.uint8)).all(-1) for f in frames]
    columns = [sorted(set(torch.nonzero(mask)[:, 1].tolist())) for mask in red]
    left = columns[0][0]
    right = columns[0][2] - left  # the second panel's; both clips are enlarged twice
    for t, found in enumerate(columns):
        first, second = left + 2 * t, left + right + 2 * min(t, 2)
        assert found == sorted([first, first + 1, second, second + 1])
    grey = (frames[0] == 128).all(-1)
    assert grey.sum() >= 2 * 32 * 32 and all(torch.equal((f == 128).all(-1), grey) for f in frames)


def test_large_clips_are_scaled_down_and_panels_go_on_in_the_next_row(tmp_path):
    panels = [(f"{n}", {"edit": torch.rand(2, 3, 40, 80)}) for n in range(3)]
    files = [write_animation(tmp_path / f"{columns}.gif", panels, columns=columns, cell=20) for columns in (3, 1)]
    wide, low = (PIL.Image.open(file).size for file in files)
    assert wide[0] > low[0] and wide[1] < low[1] and low[0] < 80


@pytest.mark.parametrize("panels", [[], [("a", {"x": moving(2)}), ("b", {"y": moving(2)})]])
def test_panels_that_do_not_belong_together_are_refused(tmp_path, panels):
    with pytest.raises(ValueError, match="all with the same labels"):
        write_animation(tmp_path / "a.gif", panels)
