"""Questions about scenes, their answers, and the check of an answer.

A question asks about few objects, so its answer lies in few visual tokens. The wording says whether a short
answer or a whole sentence is wanted ("Answer in a sentence.").
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ObjectKind = Literal["shape", "digit", "word"]
QuestionKind = Literal["colour", "shape", "count", "exists", "digit", "word", "where", "describe"]

COLOURS: tuple[str, ...] = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
KINDS: tuple[QuestionKind, ...] = ("colour", "shape", "count", "exists", "digit", "word", "where", "describe")
PLURALS: dict[str, str] = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")
BORDER = 0.035  # no "where" question about an object whose centre is nearer than this (of the side) to a third's edge

SHORT = ("", "", "", "", " Answer briefly.", " Answer in one word.", " Give a short answer.")
LONG = (" Answer in a sentence.", " Answer with a full sentence.", " Reply in a whole sentence.")

WORDINGS: dict[str, tuple[str, ...]] = {
    "colour": (
        "What colour is the {0}?",
        "What is the colour of the {0}?",
        "Which colour does the {0} have?",
        "Tell me the colour of the {0}.",
        "The {0} has which colour?",
        "What color is the {0}?",
        "Name the color of the {0}.",
    ),
    "shape": (
        "What shape is the {0} object?",
        "Which shape is {0}?",
        "What is the shape of the {0} object?",
        "Name the shape that is {0}.",
        "What shape does the {0} thing have?",
        "The {0} object has which shape?",
    ),
    "count": (
        "How many {0} are there?",
        "How many {0} are in the picture?",
        "Count the {0}.",
        "What is the number of {0}?",
        "How many {0} can you see?",
        "How many {0} does the image show?",
    ),
    "exists": (
        "Is there {0}?",
        "Is there {0} in the picture?",
        "Can you see {0}?",
        "Does the picture show {0}?",
        "Do you see {0} in the image?",
    ),
    "digit": (
        "What number is written?",
        "Which digit is in the picture?",
        "What digit is written?",
        "Read the number.",
        "Which number can you see?",
        "What is the handwritten digit?",
        "What number is in the image?",
    ),
    "word": (
        "What word is written?",
        "Read the word.",
        "Which word is in the picture?",
        "What does the text say?",
        "What is written in letters?",
        "Read the text.",
        "What word can you see?",
    ),
    "where": (
        "Where is the {0}?",
        "Where in the picture is the {0}?",
        "In which part of the picture is the {0}?",
        "Where can I find the {0}?",
        "Tell me where the {0} is.",
    ),
    "describe": (
        "Describe the picture.",
        "What is in the picture?",
        "What do you see?",
        "List all objects.",
        "What does the image show?",
        "Describe this image.",
    ),
}


@dataclass(frozen=True)
class SceneObject:
    """One object: a coloured shape, a handwritten digit on a card, or a printed word on a card.

    ``name`` is the shape's name, the digit ("0".."9") or the word (upper case); ``colour`` is one of COLOURS for a
    shape and the ink ("black" or "white") for the others; ``box`` is (left, top, right, bottom) in pixels.
    """

    kind: ObjectKind
    colour: str
    name: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Question:
    """A question with its answer; ``subject`` holds the indices of the scene's objects that it is about."""

    kind: QuestionKind
    text: str
    answer: str
    subject: tuple[int, ...]


def phrase(item: SceneObject) -> str:
    """Name an object without an article: "red star", "digit 7" or "word KITE"."""
    return f"{item.colour} {item.name}" if item.kind == "shape" else f"{item.kind} {item.name}"


def article(noun: str) -> str:
    """Put "a" or "an" before a noun phrase."""
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def location(item: SceneObject, side: int) -> str | None:
    """Return the object's ninth of a picture of ``side`` pixels ("top left" .. "centre"), None near a border."""
    left, top, right, bottom = item.box
    names = []
    for centre, cells in (((top + bottom) / 2 / side, ROWS), ((left + right) / 2 / side, COLUMNS)):
        if min(abs(centre - 1 / 3), abs(centre - 2 / 3)) < BORDER:
            return None
        names.append(cells[min(int(centre * 3), 2)])
    return " ".join(name for name in names if name) or "centre"


def ask(
    objects: Sequence[SceneObject], side: int, rng: random.Random, kinds: Sequence[QuestionKind] = KINDS
) -> list[Question]:
    """Ask one question of each kind that has exactly one right answer; wordings are drawn from ``rng``."""
    makers = (_colour, _shape, _count, _exists, _digit, _word, _where, _describe)
    chosen = [make for kind, make in zip(KINDS, makers, strict=True) if kind in kinds]
    return [q for make in chosen if (q := make(list(objects), side, rng)) is not None]


def _finish(
    kind: QuestionKind, slot: str, short: str, sentence: str, subject: Sequence[int], rng: random.Random
) -> Question:
    text = rng.choice(WORDINGS[kind]).format(slot)
    if rng.random() < 0.25:
        return Question(kind, text + rng.choice(LONG), sentence, tuple(subject))
    return Question(kind, text + rng.choice(SHORT), short, tuple(subject))


def _unique(objects: list[SceneObject], attribute: str) -> list[int]:
    """Return the indices of the shapes whose colour or name no other shape has."""
    values = [getattr(o, attribute) if o.kind == "shape" else None for o in objects]
    return [i for i, value in enumerate(values) if value is not None and values.count(value) == 1]


def _colour(objects: list[SceneObject], side: int, rng: random.Random) -> Question | None:
    choices = _unique(objects, "name")
    if not choices:
        return None
    item = objects[index := rng.choice(choices)]
    return _finish("colour", item.name, item.colour, f"The {item.name} is {item.colour}.", [index], rng)


def _shape(objects: list[SceneObject], side: int, rng: random.Random) -> Question | None:
    choices = _unique(objects, "colour")
    if not choices:
        return None
    item = objects[index := rng.choice(choices)]
    return _finish("shape", item.colour, item.name, f"The {item.colour} object is {article(item.name)}.", [index], rng)


def _count(objects: list[SceneObject], side: int, rng: random.Random) -> Question | None:
    groups: dict[int, list[tuple[str, str, list[int]]]] = {}
    for attribute, values in (("name", SHAPES), ("colour", COLOURS), ("kind", ("digit", "word"))):
        for value in values:
            found = [
                i
                for i, o in enumerate(objects)
                if getattr(o, attribute) == value and (attribute == "kind" or o.kind == "shape")
            ]
            one, many = {
                "name": (value, PLURALS.get(value, "")),
                "colour": (f"{value} object", f"{value} objects"),
                "kind": (value, f"{value}s"),
            }[attribute]
            groups.setdefault(len(found), []).append((one, many, found))
    number = rng.choice(sorted(groups))
    one, many, found = rng.choice(groups[number])
    sentence = f"There is 1 {one}." if number == 1 else f"There are {number} {many}."
    return _finish("count", many, str(number), sentence, found, rng)


def _exists(objects: list[SceneObject], side: int, rng: random.Random) -> Question | None:
    """Ask for a thing that is there or, as often, for one that is not, at the same level of detail."""
    shapes = [o for o in objects if o.kind == "shape"]
    colours, names = {o.colour for o in shapes}, {o.name for o in shapes}
    pairs = {phrase(o) for o in shapes}
    near = [f"{c} {s}" for c in sorted(colours) for s in sorted(names) if f"{c} {s}" not in pairs]
    digits = {phrase(o) for o in objects if o.kind == "digit"}
    levels: list[tuple[set[str], list[str]]] = [
        (pairs, [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in pairs]),
        (pairs, near),
        (names, [s for s in SHAPES if s not in names]),
        ({f"{c} object" for c in colours}, [f"{c} object" for c in COLOURS if c not in colours]),
        (digits, [f"digit {d}" for d in range(10) if f"digit {d}" not in digits]),
    ]
    usable = [level for level in levels if level[0] and level[1]]
    if not usable:
        return None
    present, absent = rng.choice(usable)
    if rng.random() < 0.5:
        noun = rng.choice(absent)
        return _finish("exists", article(noun), "no", f"No, there is no {noun}.", [], rng)
    noun = rng.choice(sorted(present))
    subject = [
        i
        for i, o in enumerate(objects)
        if noun == phrase(o) or (o.kind == "shape" and noun in (o.name, f"{o.colour} object"))
    ]
    return _finish("exists", article(noun), "yes", f"Yes, there is {article(noun)}.", subject, rng)


def _only(objects: list[SceneObject], kind: ObjectKind) -> int | None:
    found = [i for i, o in enumerate(objects) if o.kind == kind]
    return found[0] if len(found) == 1 else None


def _digit(objects: list[SceneObject], side: int, rng: random.Random) -> Question | None:
    if (index := _only(objects, "digit")) is None:
        return None
    name = objects[index].name
    return _finish("digit", "", name, f"The number is {name}.", [index], rng)


def _word(objects: list[SceneObject], side: int, rng: random.Random) -> Question | None:
    if (index := _only(objects, "word")) is None:
        return None
    name = objects[index].name
    return _finish("word", "", name, f"The word is {name}.", [index], rng)


def _where(objects: list[SceneObject], side: int, rng: random.Random) -> Question | None:
    choices = []
    phrases = [phrase(o) for o in objects]
    for i, item in enumerate(objects):
        if item.kind == "shape" and phrases.count(phrases[i]) == 1:
            choices.append((i, phrases[i]))
            choices += [(i, item.name)] * (i in _unique(objects, "name"))
            choices += [(i, f"{item.colour} object")] * (i in _unique(objects, "colour"))
        elif item.kind != "shape" and _only(objects, item.kind) == i:
            choices.append((i, item.kind))
    choices = [choice for choice in choices if location(objects[choice[0]], side) is not None]
    if not choices:
        return None
    index, noun = rng.choice(choices)
    place = location(objects[index], side) or ""
    joined = "in the centre" if place == "centre" else f"at the {place}"
    return _finish("where", noun, place, f"The {noun} is {joined}.", [index], rng)


def _describe(objects: list[SceneObject], side: int, rng: random.Random) -> Question | None:
    """List all objects in reading order: by the centre's row of a 12 x 12 grid, then from left to right."""

    def place(index: int) -> tuple[int, int]:
        left, top, right, bottom = objects[index].box
        return (top + bottom) * 6 // side, left + right

    order = sorted(range(len(objects)), key=place)
    answer = ", ".join(phrase(objects[i]) for i in order)
    return Question("describe", rng.choice(WORDINGS["describe"]), answer, tuple(range(len(objects))))


def content(kind: str, text: str) -> tuple[str, ...]:
    """Extract what an answer says, so that a short answer and a sentence compare equal; () if it says nothing."""
    words = re.findall(r"[a-z]+|[0-9]+", text.lower())
    if kind == "exists":
        return tuple(words[:1]) if words[:1] in (["yes"], ["no"]) else ()
    if kind == "word":
        letters = re.findall(r"[A-Za-z]+", text)
        return (letters[0].upper(),) if len(letters) == 1 else tuple(w for w in letters if len(w) > 1 and w.isupper())
    if kind == "describe":
        found = re.findall(r"digit (\d)|word (\w+)|(\w+) (" + "|".join(SHAPES) + r")\b", text.lower())
        return tuple(sorted(" ".join(part for part in item if part) for item in found))
    if kind in ("digit", "count"):
        known = {str(n): str(n) for n in range(100)} | {name: str(n) for n, name in enumerate(NUMBERS)}
    elif kind == "where":
        known = {w: w for w in ("top", "bottom", "left", "right", "centre")} | {"center": "centre", "middle": "centre"}
    else:
        known = {value: value for value in (COLOURS if kind == "colour" else SHAPES)}
    return tuple(sorted({known[w] for w in words if w in known}))


def is_correct(question: Question, answer_text: str) -> bool:
    """Say whether an answer, short or a sentence, has exactly the content of the question's answer."""
    return content(question.kind, answer_text) == content(question.kind, question.answer) != ()
