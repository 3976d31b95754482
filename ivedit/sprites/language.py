"""Captions of scenes: several templates and word orders drawn by (seed, index), and reading them back to facts.

A caption states every object (size, colour, shape, motion), the background and the style, and in half of the
scenes with up to two objects also where each object is at first. Words are lower case and separated by single
spaces; a comma is a word.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from . import draws
from . import vocabulary as v
from .scene import SceneBatch, facts

# {z} size, {c} colour, {s} shape, {p} place (with its leading words) and {m} motion.
OBJECT_TEMPLATES = (
    "a {z} {c} {s}{p} {m}",
    "a {c} {s} of {z} size{p} {m}",
    "a {z} {s} in {c}{p} {m}",
    "a {s} , {z} and {c} ,{p} {m}",
)
# {v} the verb, {d} direction, {q} pace, {t} turning.
MOTION_TEMPLATES = (
    ("moving", "bouncing", "{v} {q} {d}{t}"),
    ("moving", "bouncing", "{v} {d} {q}{t}"),
    ("that moves", "that bounces", "{v} {q} {d}{t}"),
    ("going", "bouncing", "{v} {d} {q}{t}"),
)
STILL = ("standing still", "standing still", "that stands still", "at rest")
TURNING = (" while spinning {w}", " and spinning {w}", " and spins {w}", " , spinning {w}")
# {a} and {b} the background's colours.
BACKGROUND_TEMPLATES = (
    ("a plain {a} background", "a background of plain {a}"),
    ("a gradient background from {a} to {b}", "a {a} to {b} gradient background"),
    ("a striped background in {a} and {b}", "a {a} and {b} striped background"),
    ("a checkered background in {a} and {b}", "a {a} and {b} checkered background"),
)
# {o} the objects, {b} the background; the style follows or leads.
SCENE_TEMPLATES = (
    "{o} on {b}",
    "{o} over {b}",
    "on {b} , {o}",
    "{b} with {o}",
    "a clip of {o} on {b}",
    "a scene with {o} and {b}",
)
STYLE_PHRASES = ("", "in greyscale", "in inverted colours", "as an outline drawing")
NOTHING = "nothing"
_STYLE_WORDS = {"greyscale": "grey", "inverted": "inverted", "outline": "outline"}


def _motion(form: int, speed: int, direction: int, bounces: bool, spin: int) -> str:
    turn = TURNING[form].format(w=v.SPINS[spin]) if spin else ""
    if speed == 0:
        return STILL[form] + turn
    verb = MOTION_TEMPLATES[form][1 if bounces else 0]
    return MOTION_TEMPLATES[form][2].format(v=verb, q=v.SPEEDS[speed], d=v.DIRECTIONS[direction], t=turn)


@cache
def _clause(form: int, look: int, motion: int, place: int) -> str:
    """One object's clause; the numbers code form and motion form, shape/colour/size, motion, and place (9:
    unstated).
    """
    form, motion_form = divmod(form, len(MOTION_TEMPLATES))
    look, size = divmod(look, len(v.SIZES))
    shape, colour = divmod(look, len(v.COLOURS))
    motion, spin = divmod(motion, len(v.SPINS))
    motion, bounces = divmod(motion, 2)
    speed, direction = divmod(motion, len(v.DIRECTIONS))
    where = f" at the {v.PLACES[place]}" if place < len(v.PLACES) else ""
    movement = _motion(motion_form, speed, direction, bool(bounces), spin)
    return OBJECT_TEMPLATES[form].format(z=v.SIZES[size], c=v.COLOURS[colour], s=v.SHAPES[shape], p=where, m=movement)


@cache
def _backdrop(form: int, kind: int, first: int, second: int) -> str:
    names = v.BACKGROUND_COLOURS
    return BACKGROUND_TEMPLATES[kind][form].format(a=names[first], b=names[second])


def captions(scenes: SceneBatch, seed: int, index: Tensor) -> list[str]:
    """One caption of at most 60 words per scene; templates, the objects' order and wording are drawn by
    (seed, index (B,)).
    """
    key = draws.stream(seed, index.to(scenes.device), "caption")
    known = facts(scenes)
    number = known["number"]
    look = (known["shape"] * len(v.COLOURS) + known["colour"]) * len(v.SIZES) + known["size"]
    motion = scenes.speed * len(v.DIRECTIONS) + scenes.direction
    motion = (motion * 2 + known["bounces"].long()) * len(v.SPINS) + known["spin"]
    placed = (number <= 2) & draws.chance(key, "placed", 0.5)
    place = known["place"].masked_fill(~placed[:, None], len(v.PLACES))
    slots = torch.arange(scenes.present.shape[1], device=scenes.device)
    objects = draws.fork(key[:, None], slots)
    # Absent objects sort last; the others in a drawn order.
    order = (draws.bits(objects, "order") + (~scenes.present).long() * (1 << 24)).argsort(1)
    form = draws.integers(objects, "form", len(OBJECT_TEMPLATES) * len(MOTION_TEMPLATES))
    columns = [column.gather(1, order).tolist() for column in (form, look, motion, place)]
    whole = draws.integers(key, "scene form", len(SCENE_TEMPLATES)).tolist()
    backing = draws.integers(key, "background form", 2).tolist()
    leads = draws.chance(key, "style leads", 0.5).tolist()
    backdrop = [column.tolist() for column in (scenes.background, scenes.first, scenes.second, scenes.style)]
    rows = zip(number.tolist(), *columns, whole, backing, *backdrop, leads, strict=True)
    result = []
    for count, forms, looks, motions, places, template, back, kind, first, second, style, lead in rows:
        clauses = [_clause(forms[k], looks[k], motions[k], places[k]) for k in range(count)]
        if not clauses:
            listed = NOTHING
        elif len(clauses) == 1:
            listed = clauses[0]
        else:
            listed = " , ".join(clauses[:-1]) + " and " + clauses[-1]
        text = SCENE_TEMPLATES[template].format(o=listed, b=_backdrop(back, kind, first, second))
        if style:
            phrase = STYLE_PHRASES[style]
            text = f"{phrase} , {text}" if lead else f"{text} , {phrase}"
        result.append(text)
    return result


_PLACE = re.compile(r"\bat the (" + "|".join(sorted(v.PLACES, key=len, reverse=True)) + r")\b")


def _only(words: list[str], names: tuple[str, ...], what: str) -> str:
    found = [word for word in words if word in names]
    if len(found) != 1:
        raise ValueError(f"expected one {what} in {' '.join(words)!r}, found {found}")
    return found[0]


def _parse_object(text: str) -> dict[str, Any]:
    place = _PLACE.search(text)
    words = _PLACE.sub(" ", text).split()
    heading = " ".join(word for word in words if word in ("up", "down", "left", "right"))
    speed = next((word for word in words if word in ("slowly", "quickly")), "still")
    if heading not in v.DIRECTIONS and heading:
        raise ValueError(f"unknown direction {heading!r} in {text!r}")
    return {
        "size": _only(words, v.SIZES, "size"),
        "colour": _only(words, v.COLOURS, "colour"),
        "shape": _only(words, v.SHAPES, "shape"),
        "direction": heading or None,
        "speed": speed,
        "bounces": "bouncing" in words or "bounces" in words,
        "spin": next((word for word in words if word in v.SPINS), "none"),
        "place": place.group(1) if place else None,
    }


def parse_caption(text: str) -> dict[str, Any]:
    """The facts of a caption: objects (in the order named), background, background_colours and style.

    Raises ValueError when the text is not a caption of this world.
    """
    unknown = set(text.split()) - set(caption_words())
    if unknown:
        raise ValueError(f"words outside the world of captions: {', '.join(sorted(unknown))}")
    words = text.split()
    # Every clause begins with the article "a", which is used nowhere else.
    clauses = re.split(r"(?:^|(?<= ))a (?=\S)", text)
    objects = [_parse_object(clause) for clause in clauses if set(clause.split()) & set(v.SHAPES)]
    return {
        "objects": objects,
        "background": _only(words, v.BACKGROUNDS, "background"),
        "background_colours": tuple(word for word in words if word in v.BACKGROUND_COLOURS),
        "style": next((_STYLE_WORDS[word] for word in words if word in _STYLE_WORDS), "none"),
    }


def describe(scenes: SceneBatch) -> list[dict[str, Any]]:
    """Per scene the dictionary that `parse_caption` reads from any of its captions that states places
    (objects by slot).
    """
    known = {name: value.tolist() for name, value in facts(scenes).items()}
    result = []
    for row in range(len(scenes)):
        objects = []
        for slot, there in enumerate(known["present"][row]):
            if there:
                motion = known["motion"][row][slot]
                objects.append(
                    {
                        "size": v.SIZES[known["size"][row][slot]],
                        "colour": v.COLOURS[known["colour"][row][slot]],
                        "shape": v.SHAPES[known["shape"][row][slot]],
                        "direction": v.DIRECTIONS[motion] if motion < len(v.DIRECTIONS) else None,
                        "speed": v.SPEEDS[known["speed"][row][slot]],
                        "bounces": known["bounces"][row][slot],
                        "spin": v.SPINS[known["spin"][row][slot]],
                        "place": v.PLACES[known["place"][row][slot]],
                    }
                )
        colours = [v.BACKGROUND_COLOURS[known[name][row]] for name in ("first", "second")]
        kind = known["background"][row]
        result.append(
            {
                "objects": objects,
                "background": v.BACKGROUNDS[kind],
                "background_colours": tuple(colours if kind else colours[:1]),
                "style": v.STYLES[known["style"][row]],
            }
        )
    return result


def words_of(*templates: str) -> set[str]:
    """The words of templates, without their {placeholders}."""
    return {word for template in templates for word in re.sub(r"\{\w+\}", " ", template).split()}


@lru_cache(maxsize=1)
def caption_words() -> frozenset[str]:
    """Every word that a caption may use."""
    motion = [part for triple in MOTION_TEMPLATES for part in triple]
    backdrops = [form for forms in BACKGROUND_TEMPLATES for form in forms]
    names = [
        *v.SHAPES,
        *v.COLOURS,
        *v.SIZES,
        *v.DIRECTIONS,
        *v.SPEEDS[1:],
        *v.SPINS[1:],
        *v.BACKGROUND_COLOURS,
        *v.PLACES,
    ]
    templates = [*OBJECT_TEMPLATES, *STILL, *TURNING, *SCENE_TEMPLATES, *STYLE_PHRASES, NOTHING, ", and", "at the"]
    return frozenset(words_of(*templates, *motion, *backdrops, *names))
