"""Read Markdown pages as a reader would use them: their commands, files, links and trees."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block; ``file`` is the name under which the page says to save it."""

    language: str
    text: str
    file: str | None


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    return [Block(found["language"], found["text"], found["file"]) for found in _FENCE.finditer(read(page))]


def files(page: str, folder: Path) -> list[Path]:
    """Save the blocks that the page gives a file name into a folder."""
    named = [block for block in blocks(page) if block.file]
    for block in named:
        (folder / str(block.file)).write_text(block.text, encoding="utf-8")
    return [folder / str(block.file) for block in named]


def commands(page: str) -> list[list[str]]:
    """Every command of the page, in words: lines of blocks without a language, and `python -m ...` in running text."""
    lines = [
        line
        for block in blocks(page)
        if not block.language
        for line in block.text.replace("\\\n", " ").splitlines()
        if re.match(r"(\w+=\S+ )*(python3?|mlflow) ", line)
    ]
    lines += re.findall(r"`(python -m [^`]+)`", _FENCE.sub("", read(page)))
    return [shlex.split(line) for line in lines]


def links(page: str) -> list[str]:
    """Link and picture targets that are not on the web."""
    found = _LINK.findall(_FENCE.sub("", read(page)))
    return [target for target in found if not re.match(r"\w+://", target)]


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings have on the usual forges."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
