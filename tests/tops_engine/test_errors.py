"""Test how messages repeat values: on one line, cut, and never with an error of their own."""

from typing import Any

import pytest

from tops_engine.errors import listed, quote, reason_of, shorten


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_a_short_text_stays_whole_on_one_line() -> None:
    assert shorten("photo\n  of a\tcat") == "photo of a cat"
    assert shorten("x" * 100) == "x" * 100


def test_of_a_long_text_beginning_end_and_length_are_shown() -> None:
    path = "/" + "a" * 200 + "/photo.jpg"
    assert shorten(path) == "/" + "a" * 66 + "..." + "a" * 23 + "/photo.jpg (211 characters)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("photo.jpg", "'photo.jpg'"),
        (None, "None"),
        ("/" + "x" * 80, "'/" + "x" * 80 + "'"),
        ("x" * 88_032, "'" + "x" * 33 + "..." + "x" * 15 + "' (88,034 characters)"),
        (b"x" * 200, "b'" + "x" * 32 + "..." + "x" * 15 + "' (203 characters)"),
        (nested(100_000), "a value of the type list"),
        (10**5000, "a value of the type int"),
    ],
    ids=["text", "None", "path", "long text", "long bytes", "nested", "integer"],
)
def test_values_are_quoted_as_python_writes_them_and_cut(value: object, text: str) -> None:
    assert quote(value) == text


def test_lists_are_whole_or_counted() -> None:
    assert listed(["tops", "divprune"]) == "tops, divprune"
    names = [f"method-{number:02}" for number in range(50)]
    text = listed(names)
    assert text.startswith("method-00, method-01, ")
    assert text.endswith(" ... (50 in all)")
    shown = text.removesuffix(" ... (50 in all)").split(", ")
    assert shown == names[: len(shown)]


def test_the_reason_of_a_library_is_its_first_line() -> None:
    assert reason_of(ValueError("cannot read this.\nSee https://example.org")) == "cannot read this"
    assert reason_of(KeyError()) == "KeyError"
    assert len(reason_of("x" * 5000)) < 180
