"""The same clips as every arm edited them, under one source: a part of a page, from the run folders' frames."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ivedit.runfolder import RunFolder

__all__ = ["format_strips"]

FRAMES = "frames"  # under media/, written by ivedit.evaluation.pictures


def format_strips(arms: Sequence[str], folders: Mapping[str, Mapping[int, Path]]) -> str:
    """HTML, clip by clip: the source, every arm's edit by the first seed that all have, the truth.

    Args:
        arms: In the order in which to show them.
        folders: ``{arm: {seed: run folder}}``; arms without one are left out.
    """
    return "\n".join(_strips(arms, folders))


def _strips(arms: Sequence[str], folders: Mapping[str, Mapping[int, Path]]) -> Iterator[str]:
    shown = {arm: folders[arm] for arm in arms if folders.get(arm)}
    if not shown:
        yield "<p>The run folders are not at hand, so there are no frames: make the page from them.</p>"
        return
    common = set.intersection(*(set(runs) for runs in shown.values()))
    chosen = {name: runs[min(common or set(runs))] for name, runs in shown.items()}
    clips = set.intersection(*({path.name for path in _frames(folder, "edit")} for folder in chosen.values()))
    if not clips:
        yield "<p>The runs kept no frames of the same clips (<code>evaluation.strips=0</code>?).</p>"
        return
    seeds = f"seed {min(common)}" if common else "each arm's first seed"
    yield f"<p>Frames from first to last, {seeds}; edited region / kept region.</p>"
    results = {name: RunFolder(folder).results() or {} for name, folder in chosen.items()}
    some = next(iter(chosen.values()))
    yield "<div class=strips>"
    for clip in sorted(clips):
        stem, number = clip.removesuffix("-edit.png"), int(clip.split("-")[0])
        about = next(iter(results.values()))["clips"][number]
        title = f"{about['operation'].replace('_', ' ')}: “{about.get('instruction', '')}”"
        rows = [_frame_row("source", some / "media" / FRAMES / f"{stem}-source.png")]
        for name, folder in chosen.items():
            rows.append(_frame_row(f"{name} {_score(results[name], number)}", folder / "media" / FRAMES / clip))
        rows.append(_frame_row("truth", some / "media" / FRAMES / f"{stem}-truth.png"))
        yield f"<div class=strip><strong>{html.escape(title)}</strong><table>{''.join(rows)}</table></div>"
    yield "</div>"


def _frames(folder: Path, kind: str) -> Iterator[Path]:
    return (folder / "media" / FRAMES).glob(f"*-{kind}.png")


def _score(results: Mapping[str, Any], number: int) -> str:
    values = results["rows"][results["name"]]["per_clip"]
    shown = ("-" if (x := values[key][number]) is None else f"{x:.0f}" for key in ("edited_psnr", "kept_psnr"))
    return f"{' / '.join(shown)} dB, {'success' if values['success'][number] else 'failed'}"


def _frame_row(label: str, picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode() if picture.is_file() else ""
    image = f'<img alt="{html.escape(label)}" src="data:image/png;base64,{data}">' if data else "-"
    return f"<tr><td>{html.escape(label)}</td><td>{image}</td></tr>"
