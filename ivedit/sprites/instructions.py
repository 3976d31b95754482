"""Edits in words: several phrasings per operation drawn from a key, and reading an instruction back.

The same templates make the instructions and, as regular expressions, read them, so the two cannot drift
apart. Phrasings of the split `test_phrasing` differ from those of training but use only words that training
phrasings and captions hold.
"""

from __future__ import annotations

import re
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import draws, edits
from . import vocabulary as v
from .edits import Edit, picked
from .language import caption_words, words_of
from .scene import SceneBatch

# {d} the object named, {x} the new value ({x} of additions: the new object and {w} where; of backgrounds:
# colours or pattern).
TRAIN = {
    "recolour": (
        "make {d} {x}",
        "paint {d} {x}",
        "turn {d} {x}",
        "change the colour of {d} to {x}",
        "recolour {d} to {x}",
    ),
    "reshape": (
        "turn {d} into a {x}",
        "change {d} into a {x}",
        "make {d} a {x}",
        "change the shape of {d} to a {x}",
    ),
    "remove": ("remove {d}", "delete {d}", "take {d} away", "erase {d}", "leave out {d}"),
    "add": ("add a {x} {w}", "put a {x} {w}", "place a {x} {w}", "draw a {x} {w}", "{w} , add a {x}"),
    "resize": (
        "make {d} {x}",
        "change the size of {d} to {x}",
        "turn {d} {x}",
        "resize {d} to {x}",
        "set the size of {d} to {x}",
    ),
    "background_colour": (
        "make the background {x}",
        "paint the background {x}",
        "turn the background {x}",
        "change the colour of the background to {x}",
        "give the background the colour {x}",
    ),
    "background_pattern": (
        "make the background {x}",
        "turn the background {x}",
        "change the pattern of the background to {x}",
        "set the background to {x}",
    ),
    "style": (
        "turn the scene into {x}",
        "show the scene as {x}",
        "change the style to {x}",
        "set the style to {x}",
    ),
}
UNSEEN = {
    "recolour": ("set the colour of {d} to {x}", "give {d} the colour {x}"),
    "reshape": ("set the shape of {d} to a {x}", "give {d} the shape of a {x}"),
    "remove": ("take away {d}", "take {d} out of the scene"),
    "add": ("show a {x} {w}", "{w} , put a {x}", "set a {x} {w}"),
    "resize": ("give {d} the size {x}", "set {d} to {x}"),
    "background_colour": ("set the colour of the background to {x}", "recolour the background to {x}"),
    "background_pattern": ("give the background the pattern {x}", "change the background to {x}"),
    "style": ("give the scene the style {x}", "draw the scene as {x}"),
}
TRAIN_JOINS = ("{1} and {2}", "{1} and then {2}", "{1} , then {2}", "{1} then {2}")
UNSEEN_JOINS = ("{1} , {2}", "{1} , and {2}")
NAMES = ("the {c} {s}", "the {s}", "the {c} object", "the {z} {c} {s}", "it")  # by the namings of `edits`
FOLLOWING = " moving with it"
_SIMPLE = v.OPERATIONS[:-1]


def _name(naming: int, shape: int, colour: int, size: int) -> str:
    return NAMES[naming].format(c=v.COLOURS[colour], s=v.SHAPES[shape], z=v.SIZES[size])


def _pattern(kind: int, first: int, second: int) -> str:
    text = v.BACKGROUNDS[kind]
    if first >= 0:
        return f"{text} {v.BACKGROUND_COLOURS[first]}"
    return f"{text} with {v.BACKGROUND_COLOURS[second]}" if second >= 0 else text


def _added(edit: dict[str, int], name: str, follows: bool) -> tuple[str, str]:
    """What an addition adds, and where."""
    new = f"{v.SIZES[edit['size']]} {v.COLOURS[edit['colour']]} {v.SHAPES[edit['shape']]}"
    if edit["place"] >= 0:
        return new, f"at the {v.PLACES[edit['place']]}"
    return new, f"{v.RELATIONS[edit['relation']]} {name}{FOLLOWING if follows else ''}"


def _value(edit: dict[str, int]) -> str:
    """The words for the new value of an edit that is no addition; none for a removal."""
    op = edit["operation"]
    if op == edits.RECOLOUR:
        return v.COLOURS[edit["colour"]]
    if op == edits.RESHAPE:
        return v.SHAPES[edit["shape"]]
    if op == edits.RESIZE:
        return v.SIZES[edit["size"]]
    if op == edits.BACKGROUND_COLOUR:
        other = edit["second"]
        return v.BACKGROUND_COLOURS[edit["first"]] + (f" and {v.BACKGROUND_COLOURS[other]}" if other >= 0 else "")
    if op == edits.BACKGROUND_PATTERN:
        return _pattern(edit["background"], edit["first"], edit["second"])
    return v.STYLE_PHRASES[edit["style"]] if op == edits.STYLE else ""


def _clauses(source: SceneBatch, edit: Edit, form: Tensor, unseen: bool) -> list[str]:
    """One clause per simple edit, "" for operation -1; `form` (B,) int64 in [0, 2**24) chooses the phrasing."""
    looks = zip(*(picked(x, edit.slot).tolist() for x in (source.shape, source.colour, source.size)), strict=True)
    names = [field.name for field in fields(Edit)]
    rows = zip(*(getattr(edit, name).tolist() for name in names), strict=True)
    book = [(UNSEEN if unseen else TRAIN)[name] for name in _SIMPLE]
    result = []
    follows = edits.follows(source, edit).tolist()
    for row, number, look, moving in zip(rows, form.tolist(), looks, follows, strict=True):
        values = dict(zip(names, row, strict=True))
        op = values["operation"]
        if op < 0:
            result.append("")
            continue
        name = _name(values["naming"], *look) if values["naming"] >= 0 else ""
        new, where = _added(values, name, moving) if op == edits.ADD else (_value(values), "")
        template = book[op][number * len(book[op]) >> 24]
        result.append(template.replace("{d}", name).replace("{x}", new).replace("{w}", where))
    return result


def instructions(key: Tensor, source: SceneBatch, first: Edit, second: Edit, unseen: bool = False) -> list[str]:
    """One instruction of at most 30 words per pair; `second` has operation -1 where the edit is a simple one.

    Objects are named as they are in `source`. `unseen` takes the phrasings of the split test_phrasing.
    """
    one = _clauses(source, first, draws.bits(key, "first phrasing"), unseen)
    two = _clauses(source, second, draws.bits(key, "second phrasing"), unseen)
    joins = UNSEEN_JOINS if unseen else TRAIN_JOINS
    join = draws.integers(key, "join", len(joins)).tolist()
    return [joins[j].replace("{1}", a).replace("{2}", b) if b else a for a, b, j in zip(one, two, join, strict=True)]


def _either(names: tuple[str, ...]) -> str:
    return "(?:" + "|".join(sorted(names, key=len, reverse=True)) + ")"


@lru_cache(maxsize=1)
def _readers() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """(operation, pattern) per phrasing."""
    colour, shape, size = _either(v.COLOURS), _either(v.SHAPES), _either(v.SIZES)
    tone = _either(v.BACKGROUND_COLOURS)
    name = f"(?P<d>it|the (?:{size} )?(?:{colour} )?(?:{shape}|object))"
    new = {
        "recolour": f"(?P<colour>{colour})",
        "reshape": f"(?P<shape>{shape})",
        "remove": "",
        "add": f"(?P<size>{size}) (?P<colour>{colour}) (?P<shape>{shape})",
        "resize": f"(?P<size>{size})",
        "background_colour": f"(?P<first>{tone})(?: and (?P<second>{tone}))?",
        "background_pattern": (
            f"(?P<background>{_either(v.BACKGROUNDS)})(?: (?P<first>{tone})| with (?P<second>{tone}))?"
        ),
        "style": f"(?P<style>{_either(v.STYLE_PHRASES[1:])})",
    }
    beside = f"(?P<relation>{_either(v.RELATIONS)}) {name}(?P<following>{FOLLOWING})?"
    where = f"(?:at the (?P<place>{_either(v.PLACES)})|{beside})"
    return tuple(
        (operation, re.compile(template.replace("{d}", name).replace("{x}", new[operation]).replace("{w}", where)))
        for operation in _SIMPLE
        for template in TRAIN[operation] + UNSEEN[operation]
    )


@lru_cache(maxsize=1 << 16)
def _read_clause(text: str) -> tuple[str, tuple[tuple[str, str | None], ...]] | None:
    for operation, pattern in _readers():
        found = pattern.fullmatch(text)
        if found:
            return operation, tuple(found.groupdict().items())
    return None


def _step(operation: str, values: dict[str, str | None]) -> dict[str, Any]:
    new = {name: value for name, value in values.items() if value is not None and name not in ("d", "following")}
    if "style" in new:
        new["style"] = v.STYLES[v.STYLE_PHRASES.index(new["style"])]
    words = (values.get("d") or "").split()
    target = None
    if words:
        target = {
            "it": words == ["it"],
            "size": next((word for word in words if word in v.SIZES), None),
            "colour": next((word for word in words if word in v.COLOURS), None),
            "shape": next((word for word in words if word in v.SHAPES), None),
        }
    return {"operation": operation, "object": target, "new": new, "follows": bool(values.get("following"))}


def parse_instruction(text: str) -> dict[str, Any]:
    """{"operation", "steps"}: one step, or two for a compound; raises ValueError for words that are no instruction.

    A step is {"operation", "object" (its size, colour, shape as far as named, or "it"; None), "new" (names of
    the new values), "follows" (an added object moves with its reference)}.
    """
    whole = _read_clause(text)
    if whole:
        return {"operation": whole[0], "steps": [_step(whole[0], dict(whole[1]))]}
    # Longer joins first: ", then" must not be read as a comma and a clause that begins with "then".
    joins = sorted((join[3:-3] for join in TRAIN_JOINS + UNSEEN_JOINS), key=len, reverse=True)
    for join in joins:
        begin = text.find(join)
        while begin >= 0:
            halves = _read_clause(text[:begin]), _read_clause(text[begin + len(join) :])
            if halves[0] and halves[1]:
                steps = [_step(half[0], dict(half[1])) for half in halves if half]
                return {"operation": "compound", "steps": steps}
            begin = text.find(join, begin + 1)
    raise ValueError(f"not an instruction of the sprite world: {text!r}")


def resolve(scenes: SceneBatch, text: str) -> SceneBatch:
    """The one scene of `scenes` (B = 1) after the instruction `text`: from the scene and the words, nothing else.

    Raises ValueError when the words fit no object or several.
    """
    steps = parse_instruction(text)["steps"]
    asked = edits.edits_from_facts(steps).to(scenes.device)
    result, named = scenes, -1
    for number, step in enumerate(steps):
        wanted = step["object"]
        if wanted and not wanted["it"]:
            fits = scenes.present[0].clone()
            for field, names in (("size", v.SIZES), ("colour", v.COLOURS), ("shape", v.SHAPES)):
                if wanted[field]:
                    fits &= getattr(scenes, field)[0] == names.index(wanted[field])
            if fits.sum() != 1:
                raise ValueError(f"{int(fits.sum())} objects fit the words of {text!r}")
            named = int(fits.long().argmax())
        slot = torch.tensor([named if wanted else -1], device=scenes.device)
        result = edits.apply_edit(result, replace(asked[number : number + 1], slot=slot))
    return result


@lru_cache(maxsize=1)
def all_words() -> list[str]:
    """The closed vocabulary, sorted: every word of every caption and instruction."""
    templates = [text for book in (TRAIN, UNSEEN) for texts in book.values() for text in texts]
    joins = [join.replace("{1}", " ").replace("{2}", " ") for join in TRAIN_JOINS + UNSEEN_JOINS]
    names = [*NAMES, FOLLOWING, *v.RELATIONS, *v.STYLE_PHRASES, "at the", "with", "and"]
    return sorted(caption_words() | words_of(*templates, *joins, *names))
