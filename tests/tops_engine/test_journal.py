"""Test results files: what is cut off, refused and sorted."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tops_engine.errors import InvalidInput
from tops_engine.journal import BLOCK, Journal

HEADER = {"format": "test 1", "of": "numbers"}
FIRST = json.dumps(HEADER).encode() + b"\n"


def place(record: dict[str, Any]) -> int:
    number: int = record["number"]
    return number


@given(numbers=st.lists(st.integers(0, 9)), cut=st.integers(0, 400), length=st.sampled_from([1, 30, BLOCK]))
def test_a_file_cut_anywhere_is_continued(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], cut: int, length: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "results.jsonl"
    records = [{"number": number, "text": "x" * length} for number in numbers]
    Journal(path, HEADER).append(records)
    whole = path.read_bytes()
    cut = min(cut, len(whole))
    path.write_bytes(whole[: len(whole) - cut])

    kept = list(Journal(path, HEADER).records())

    assert kept == records[: max(0, whole[: len(whole) - cut].count(b"\n") - 1)]
    assert path.read_bytes() == FIRST + b"".join(json.dumps(record).encode() + b"\n" for record in kept)


@given(st.lists(st.tuples(st.integers(0, 9), st.text(st.characters(codec=None)))))
def test_sorting_keeps_the_last_of_equal_keys(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[int, str]]
) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "results.jsonl", HEADER)
    journal.append([{"number": number, "text": text} for number, text in records])
    journal.sort(place)
    latest = dict(records)
    assert list(journal.records()) == [{"number": number, "text": latest[number]} for number in sorted(latest)]


def test_a_disk_without_room_loses_nothing_that_was_written(tmp_path: Path) -> None:
    """A bound of the size of files stands for the full disk: the system stops the write in the middle."""
    path = tmp_path / "results.jsonl"
    journal = Journal(path, HEADER)
    journal.append([{"number": 1}])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
    try:
        with pytest.raises(InvalidInput, match=r"results\.jsonl cannot be written"):
            journal.append([{"number": 2, "text": "x" * 100}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again = Journal(path, HEADER)
    assert list(again.records()) == [{"number": 1}]
    again.append([{"number": 2}])
    assert list(Journal(path, HEADER).records()) == [{"number": 1}, {"number": 2}]


def test_a_sorted_file_is_not_touched(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "results.jsonl", HEADER)
    journal.append([{"number": 1}, {"number": 2}])
    before = (tmp_path / "results.jsonl").stat()
    Journal(tmp_path / "results.jsonl", HEADER).sort(place)
    assert (tmp_path / "results.jsonl").stat() == before
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_another_header_without_a_newline_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"format": "test 1"}')
    with pytest.raises(InvalidInput, match="different: of"):
        Journal(path, HEADER)
    assert path.read_text() == '{"format": "test 1"}'


def test_without_a_file_nothing_is_written() -> None:
    journal = Journal(None, HEADER)
    journal.append([{"number": 1}])
    journal.sort(place)
    assert list(journal.records()) == []
