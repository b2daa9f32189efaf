"""Test that boxes and points are read from what each family writes, and scaled to the original picture."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tops_engine.families import FAMILIES
from tops_engine.grounding import formats
from tops_engine.grounding.formats import Format
from tops_engine.grounding.places import Box, Places, Point

FORMATS: dict[str, Format] = {name: value for name, value in vars(formats).items() if isinstance(value, Format)}

#: A picture of 400 x 200 pixels, which the processor scaled to 800 x 600 where coordinates are pixels.
SIZE = (400, 200)


def read(name: str, text: str, *sizes: tuple[int, int]) -> Places:
    shape = FORMATS[name]
    sizes = sizes or (SIZE,)
    return shape.read(text, sizes, [(800, 600) if shape.full is None else (shape.full, shape.full)] * len(sizes))


def box(*edges: float, label: str = "", picture: int = 0) -> Box:
    return Box(label=label, picture=picture, left=edges[0], top=edges[1], right=edges[2], bottom=edges[3])


def point(x: float, y: float, label: str = "", picture: int = 0) -> Point:
    return Point(label=label, picture=picture, x=x, y=y)


# What each format writes, and the same place in a picture of 400 x 200 pixels.
CAT, WHOLE = box(40, 40, 120, 80, label="cat"), (40, 40, 120, 80)
WRITTEN: list[tuple[str, str, list[Box], list[Point]]] = [
    (
        "QWEN2",
        "A <|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|> and "
        "<|box_start|>(0,0),(999,999)<|box_end|>.",
        [CAT, box(0, 0, 399.6, 199.8)],
        [],
    ),
    ("QWEN2", '```json\n[{"bbox_2d": [100, 200, 300, 400], "label": "cat"}]\n```', [CAT], []),
    (
        "QWEN2_5",
        '```json\n[\n\t{"bbox_2d": [80, 120, 240, 240], "label": "cat"},\n'
        '\t{"point_2d": [200, 300], "label": "nose"}\n]\n```',
        [CAT],
        [point(100, 100, "nose")],
    ),
    (
        "QWEN2_5",
        '<points x1="200" y1="300" x2="400" y2="150" alt="eyes">eyes</points>',
        [],
        [point(100, 100, "eyes"), point(200, 50, "eyes")],
    ),
    ("QWEN3", '{"bbox_2d": [100.0, 200, 300, 400], "label": "cat"}', [CAT], []),
    ("QWEN3", '{"objects": [{"point_2d": [500, 250], "label": "ear"}]}', [], [point(200, 50, "ear")]),
    ("QWEN3", '[{"bbox_2d": [100, 200, 300, 400], "text_content": "cat"}, {"bbox_2d": [1, 2', [CAT], []),
    (
        "INTERNVL",
        "<ref>cat</ref><box>[[100, 200, 300, 400], [0, 0, 500, 500]]</box>",
        [CAT, box(0, 0, 200, 100, label="cat")],
        [],
    ),
    ("GLM", "It is at <|begin_of_box|>[[100, 200, 300, 400]]<|end_of_box|>.", [box(*WHOLE)], []),
    ("GLM", '<|begin_of_box|>[{"label": "cat", "bbox_2d": [100,200,300,400]}]<|end_of_box|>', [CAT], []),
    ("GLM", "The answer is <|begin_of_box|>17<|end_of_box|>, not [1, 2, 3, 4].", [], []),
    (
        "GEMMA",
        '[{"box_2d": [200, 100, 400, 300], "label": "cat"}, {"point": [500, 250], "label": "tail"}]',
        [CAT],
        [point(100, 100, "tail")],
    ),
    ("LFM2", '[{"label": "cat", "bbox": [0.1, 0.2, 0.3, 0.4]}]', [CAT], []),
    ("MINICPM", "<ref>cat</ref><box>100 200 300 400</box> <point>500 250</point>", [CAT], [point(200, 50)]),
    (
        "MOLMO2",
        'The <points coords="1 1 100 200 2 300 400">cats</points> and <point x="50.0" y="25.0" alt="dog">dog</point>',
        [],
        [point(200, 50, "dog"), point(40, 40, "cats"), point(120, 80, "cats")],
    ),
    (
        "PALIGEMMA",
        "<loc0256><loc0128><loc0512><loc0384> cat ; <loc0000><loc0000><loc1023><loc1023> floor",
        [box(50, 50, 150, 100, label="cat"), box(0, 0, 399.61, 199.8, label="floor")],
        [],
    ),
]


@pytest.mark.parametrize(("name", "text", "boxes", "points"), WRITTEN)
def test_what_a_family_writes_becomes_pixels(name: str, text: str, boxes: list[Box], points: list[Point]) -> None:
    places = read(name, text)
    assert list(places.boxes) == boxes
    assert list(places.points) == points


@pytest.mark.parametrize("name", FORMATS)
def test_the_examples_of_a_format_are_read(name: str) -> None:
    shape = FORMATS[name]
    assert {name for name, *_ in WRITTEN} == set(FORMATS)
    for example in shape.examples:
        assert read(name, example, (1000, 1000)), example


def test_the_picture_is_the_one_named_or_else_the_last() -> None:
    text = '<points coords="1 1 500 500;2 2 500 500;3 3 500 500">dot</points>'
    assert read("MOLMO2", text, (10, 20), (40, 30)).points == (point(5, 10, "dot"), point(20, 15, "dot", picture=1))
    assert read("QWEN3", '{"bbox_2d": [0, 0, 500, 500]}', (10, 20), (40, 30)).boxes == (box(0, 0, 20, 15, picture=1),)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([300, 400, 100, 200], [box(*WHOLE)]),
        ([-50, 500, 1200, 1001], [box(0, 100, 400, 200)]),
        ([1000, 0, 1200, 500], []),
        ([100, 200, 100, 400], []),
        ([100, 200, 300], []),
        ([100, 200, 300, "400"], []),
        ([True, 200, 300, 400], []),
        ([100, 200, 300, 10**400], []),
    ],
)
def test_corners_are_sorted_and_boxes_stay_in_the_picture(values: list[Any], expected: list[Box]) -> None:
    text = str(values).replace("'", '"').replace("True", "true")
    assert list(read("QWEN3", f'{{"bbox_2d": {text}}}').boxes) == expected


def test_points_outside_are_left_out() -> None:
    assert not read("QWEN3", '{"point_2d": [1001, 3]}')
    assert not read("QWEN3", '{"point_2d": [NaN, 3]}')


MARKS = (*'[]{}(),"', '"bbox_2d":', '"label":', "<box>", "</box>", "<point ", "<points coords=", "<ref>")
OTHERS = ("<|box_start|>", "<|begin_of_box|>", "<loc9999>", "NaN", "Infinity", "1e999", "-1", "[" * 2000, "9" * 5000)
PIECES = [example for shape in FORMATS.values() for example in shape.examples] + [*MARKS, *OTHERS]
DAMAGED = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=12)), max_size=24).map("".join)


@settings(max_examples=50)
@given(text=DAMAGED, data=st.data())
def test_damaged_answers_give_places_in_the_picture_or_none(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    text = text[start : data.draw(st.integers(start, len(text)))]
    for name in FORMATS:
        places = read(name, text)
        for one in places.boxes:
            assert 0 <= one.left < one.right <= SIZE[0]
            assert 0 <= one.top < one.bottom <= SIZE[1]
        assert all(0 <= one.x <= SIZE[0] and 0 <= one.y <= SIZE[1] for one in places.points)


@pytest.mark.parametrize("piece", ["<|begin_of_box|>", "{", '{"a":', "<point ", "<points x=", "<ref>", "<loc0001>"])
def test_long_damaged_answers_are_read_at_once(piece: str) -> None:
    begun = time.process_time()
    assert not any(read(name, 20000 * piece).points for name in FORMATS)
    assert time.process_time() - begun < 5


def test_every_format_of_a_family_is_one_of_its_model_types() -> None:
    for model_type, family in FAMILIES.items():
        assert set(family.grounding) <= {*family.model_types, "glm46v"}, model_type
        assert set(family.grounding.values()) <= set(FORMATS.values())
