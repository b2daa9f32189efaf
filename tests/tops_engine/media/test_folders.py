"""One walker: which files of a folder are pictures, and what is left out, by kind."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Picture
from tops_engine.errors import InvalidInput
from tops_engine.media.folders import left_out_sentence, list_pictures, picture_files
from tops_engine.media.images import open_image

NAMES = ["a/deep/x.webp", "a/y.JPG", "a.png", "b.heic", "c.jfif", "z.pgm"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    others = (
        "notes.txt",
        "a/more.TXT",
        "clip.mp4",
        "README",
        ".hidden.png",
        "a/.thumbnails/t.png",
        "x.eps",
        "b.jpg/c.txt",
    )
    for name in (*NAMES, *others):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_pictures_are_found_in_order_and_the_rest_is_counted(folder: Path) -> None:
    left_out: Counter[str] = Counter()
    assert list_pictures(folder, left_out) == NAMES
    assert left_out == {".txt": 3, "hidden": 2, ".mp4": 1, ".eps": 1, "no ending": 1}
    assert left_out_sentence(left_out) == "Left out: 3 .txt, 2 hidden, 1 .eps, 1 .mp4, 1 no ending."
    assert list(picture_files(folder)) == NAMES


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_to_files_are_followed_and_links_to_folders_are_counted(folder: Path, tmp_path: Path) -> None:
    (folder / "d.png").symlink_to(folder / "a.png")
    (folder / "loop").symlink_to(folder)
    left_out: Counter[str] = Counter()
    assert "d.png" in list_pictures(folder, left_out)
    assert left_out["link to a folder"] == 1


def test_many_kinds_are_summed_up() -> None:
    counts = Counter({f".k{number:02}": 20 - number for number in range(12)})
    assert left_out_sentence(counts).endswith("13 .k07, 42 of other kinds.")
    assert left_out_sentence(Counter()) == ""


def test_a_folder_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"There are no pictures in .* It is empty\."):
        list_pictures(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"There are no pictures in .* Left out: 1 \.mp4\."):
        list_pictures(tmp_path)
    with pytest.raises(InvalidInput, match="There is no folder"):
        list_pictures(tmp_path / "none")


def test_what_is_opened_by_name_counts_in_a_folder(tmp_path: Path, picture: Picture) -> None:
    for name, format in (("a.pgm", "PPM"), ("b.jfif", "JPEG"), ("c.j2k", "JPEG2000"), ("d.apng", "PNG")):
        picture(8, 8).convert("L").save(tmp_path / name, format)
    names = list_pictures(tmp_path)
    assert names == ["a.pgm", "b.jfif", "c.j2k", "d.apng"]
    assert {open_image(tmp_path / name).size for name in names} == {(8, 8)}
