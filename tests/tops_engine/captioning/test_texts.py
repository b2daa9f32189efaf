"""Text files beside pictures: whole or not at all, each of one picture, and one that cannot be read is named."""

import os
from pathlib import Path

import pytest

from tops_engine.captioning.texts import check_own_texts, has_text, read_text, write_text
from tops_engine.errors import InvalidInput


@pytest.mark.parametrize("content", ["café", "\ufeffcafé", "  café\r\n"])
def test_a_text_is_read_with_or_without_a_byte_order_mark(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    assert read_text(tmp_path / "a.jpg") == "café"
    assert has_text(tmp_path / "a.jpg")


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_text_in_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_text("café", encoding=encoding)
    with pytest.raises(InvalidInput, match=r"a\.txt is not UTF-8 text; convert it to UTF-8"):
        read_text(tmp_path / "a.jpg")


def test_a_name_as_long_as_the_file_system_takes_gets_its_text(tmp_path: Path) -> None:
    picture = tmp_path / f"{'n' * 251}.jpg"
    write_text(picture, "one")
    write_text(picture, "two")
    assert read_text(picture) == "two"
    assert os.listdir(tmp_path) == [f"{'n' * 251}.txt"]


def test_a_text_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(InvalidInput, match=r"a\.txt cannot be written"):
        write_text(tmp_path / "a.jpg", "one")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_pictures_that_share_a_text_are_named(tmp_path: Path) -> None:
    names = [
        "x.jpg",
        "x.png",
        "x.JPG",
        "y.png",
        "sub/x.jpg",
        "x.a.jpg",
        *(f"{n}{e}" for n in "abc" for e in (".png", ".gif")),
    ]
    pictures = [tmp_path / name for name in names]
    with pytest.raises(InvalidInput, match=rf"x\.jpg and x\.png and x\.JPG in {tmp_path}; .* and 1 more\. Rename"):
        check_own_texts(pictures)
    check_own_texts(pictures, only_existing=True)
    (tmp_path / "a.txt").write_text("whose?")
    with pytest.raises(InvalidInput, match=r"share one \.txt file: a\.png and a\.gif in [^;]*\. Rename"):
        check_own_texts(pictures, only_existing=True)
    check_own_texts(tmp_path / name for name in ("x.jpg", "y.png", "sub/x.jpg", "x.a.jpg"))
