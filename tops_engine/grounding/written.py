"""Find the coordinates in the text of an answer, as the model wrote them."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Written:
    """Coordinates as an answer states them.

    Attributes
    ----------
    label : what they belong to; empty if the answer does not say.
    values : two for a point, four for a box, in the order of the text; all finite.
    picture : the number of the picture, from 0; None if the answer does not say.
    """

    label: str
    values: tuple[float, ...]
    picture: int | None = None


#: Reads the text of an answer. It gives nothing for what is malformed, and raises nothing.
Reader = Callable[[str], Iterator[Written]]

#: The names of coordinates in JSON, with how many there are: four of a box, two of a point.
SIZES = {"bbox_2d": 4, "box_2d": 4, "bbox": 4, "box": 4, "point_2d": 2, "point": 2}
LABEL_KEYS = ("label", "text_content", "text", "name", "object", "class", "description")

NUMBER = r"-?\d{1,9}(?:\.\d{1,9})?"
# [1, 2, 3, 4], (1,2),(3,4) and the like: numbers in brackets, of which several pairs may make a box.
BRACKETS = re.compile(rf"[\[(]\s*({NUMBER}(?:\s*,\s*{NUMBER}){{1,3}})\s*[\])]")
OBJECT = re.compile(r'\{\s*"')
# The marks of Qwen2-VL, then those of InternVL and MiniCPM.
MARKED = re.compile(
    r"(?:<\|object_ref_start\|>(?P<name>[^<]{0,500})<\|object_ref_end\|>\s{0,9})?"
    r"<\|box_start\|>(?P<box>[^<]{1,2000})<\|box_end\|>"
    r"|(?:<ref>(?P<ref>[^<]{0,500})</ref>\s{0,9})?<(?P<tag>box|point)>(?P<body>[^<]{1,2000})</(?P=tag)>"
)
ANSWER_BOX = re.compile(r"<\|begin_of_box\|>([^<]{1,8000})<\|end_of_box\|>")
LOCATIONS = re.compile(r"((?:<loc\d{4}>){4})(?:<seg\d{3}>){0,16}([^<;]{0,500})")
POINTS_TAG = re.compile(r"<points?\s([^<>]{1,20000})>([^<]{0,500})</points?>|<points?\s([^<>]{1,20000})/>")
ATTRIBUTE = re.compile(r"\b(alt|coords|[xy]\d{0,4})\s{0,3}=\s{0,3}[\"']([^\"']{0,20000})[\"']")


def json_objects(text: str) -> Iterator[Written]:
    """Read the objects of a JSON list, or of a text with JSON in it: Qwen, Gemma, GLM, LFM2.

    An object that is cut off, or that holds something else, is left out, the others are read.
    """
    decoder, end = json.JSONDecoder(), 0
    for match in OBJECT.finditer(text):
        if match.start() < end:
            continue
        try:
            found, end = decoder.raw_decode(text, match.start())
        except ValueError:
            continue
        except RecursionError:
            return
        yield from _of_object(found)


def marked(text: str) -> Iterator[Written]:
    """Read coordinates between marks, with a label between marks in front: Qwen2-VL, InternVL, MiniCPM."""
    for match in MARKED.finditer(text):
        body = match["box"] or match["body"]
        numbers = [float(number) for number in re.findall(NUMBER, body)]
        size = 2 if match["tag"] == "point" else 4
        if numbers and len(numbers) % size == 0:
            label = (match["name"] or match["ref"] or "").strip()
            yield from (Written(label, tuple(numbers[place : place + size])) for place in range(0, len(numbers), size))


def answer_boxes(text: str) -> Iterator[Written]:
    """Read lists of four coordinates in the final answer of GLM-V, which is between marks; its JSON is read as such."""
    for match in ANSWER_BOX.finditer(text):
        if "{" not in match[1]:
            for numbers in BRACKETS.findall(match[1]):
                values = tuple(float(number) for number in numbers.split(","))
                if len(values) == 4:
                    yield Written("", values)


def locations(text: str) -> Iterator[Written]:
    """Read PaliGemma's ``<loc0123>`` tokens, four of which are a box, and the label behind them."""
    for match in LOCATIONS.finditer(text):
        yield Written(match[2].strip(), tuple(float(number) for number in re.findall(r"\d{4}", match[1])))


def point_tags(text: str) -> Iterator[Written]:
    """Read ``<point x="1" y="2">label</point>`` and ``<points x1="1" y1="2" ...>``: Qwen2.5-VL."""
    for label, attributes in _tags(text):
        for name, x in attributes.items():
            y = attributes.get(f"y{name[1:]}")
            if name.startswith("x") and y is not None and re.fullmatch(NUMBER, x) and re.fullmatch(NUMBER, y):
                yield Written(label, (float(x), float(y)))


def molmo_points(text: str) -> Iterator[Written]:
    """Read the points of Molmo, in percent, and those of Molmo2, in thousandths; return thousandths.

    Molmo2 writes ``coords="1 1 073 160 2 173 600"``: the number of the picture, then the number and coordinates of each
    point; a semicolon, or a tab, stands before the next picture.
    """
    for point in point_tags(text):
        yield Written(point.label, (10 * point.values[0], 10 * point.values[1]))
    for label, attributes in _tags(text):
        for group in re.split(r"[;\t]", attributes.get("coords", "")):
            picture, *numbers = group.split() or [""]
            if len(numbers) % 3 or not all(re.fullmatch(NUMBER, word) for word in (picture, *numbers)):
                continue
            for place in range(0, len(numbers), 3):
                yield Written(label, (float(numbers[place + 1]), float(numbers[place + 2])), int(float(picture)) - 1)


def _tags(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Return the label and the attributes of each ``<point>`` and ``<points>``."""
    for match in POINTS_TAG.finditer(text):
        attributes = dict(ATTRIBUTE.findall(match[1] or match[3]))
        yield (match[2] or "").strip() or attributes.get("alt", "").strip(), attributes


def _of_object(found: Any) -> Iterator[Written]:
    """Return the coordinates of JSON data and of everything in it, in the order of the text."""
    # Not recursive: data may be as deep as the decoder allows.
    waiting = [found]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += reversed(value)
        elif isinstance(value, dict):
            label = next((value[key].strip() for key in LABEL_KEYS if isinstance(value.get(key), str)), "")
            for key, size in SIZES.items():
                yield from (Written(label, values) for values in _coordinates(value.get(key), size))
            waiting += reversed(value.values())


def _coordinates(value: Any, size: int) -> Iterator[tuple[float, ...]]:
    """Return the groups of ``size`` numbers of a list: itself, or each list in it."""
    if not isinstance(value, list):
        return
    groups = value if value and isinstance(value[0], list) else [value]
    for group in groups:
        if isinstance(group, list) and len(group) == size and all(_is_coordinate(number) for number in group):
            yield tuple(float(number) for number in group)


def _is_coordinate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
