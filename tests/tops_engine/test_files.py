"""Test reading text files of any origin."""

from pathlib import Path

import pytest

from tops_engine import files
from tops_engine.errors import InvalidInput
from tops_engine.files import inside, read_text_file
from tops_engine.methods.recipe import Recipe
from tops_engine.settings import Generation


def test_text_is_read_in_its_encoding(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9")
    assert read_text_file(path, "utf-8-sig") == "caf\u00e9"


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 2**20)
    path = tmp_path / "text"
    path.write_bytes(b"x" * 2**20)
    assert len(read_text_file(path)) == 2**20
    path.write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(OSError, match="It is larger than 1 MiB"):
        read_text_file(path)


def test_a_device_without_an_end_is_not_read() -> None:
    with pytest.raises(InvalidInput, match="json_schema names a file that cannot be read, '/dev/zero': It is not a"):
        Generation(json_schema="/dev/zero")
    with pytest.raises(InvalidInput, match="The recipe '/dev/zero' cannot be read: It is not a file"):
        Recipe.read("/dev/zero")


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    for name, reason in (("x" * 300, "longer than a file name"), ("\ud800", "cannot be the name"), ("\0", "outside")):
        with pytest.raises(InvalidInput, match=reason):
            inside(tmp_path, name, follow_links=True)
