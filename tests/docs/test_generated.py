"""The generated parts of README and docs are up to date, and counts in their sentences are true."""

import re
from pathlib import Path

import pytest

import nodes
from tools.record_docs import PART, PARTS, files, pages, with_parts
from tops_engine.methods import METHODS

NUMBERS = "nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty".split()


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    """After a change: ``python -m tools.record_docs`` writes them anew."""
    text = page.read_text(encoding="utf-8")
    assert text == with_parts(text)


def test_generated_files_are_up_to_date() -> None:
    """After a change: ``python -m tools.record_docs`` writes them anew."""
    for path, content in files().items():
        assert path.read_text(encoding="utf-8") == content


def test_every_part_stands_on_a_page() -> None:
    texts = [page.read_text(encoding="utf-8") for page in pages()]
    found = {part["name"] for text in texts for part in PART.finditer(text)}
    assert found == set(PARTS)
    assert sum(text.count("<!-- generated: ") for text in texts) == len(PARTS)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_counts_of_methods_and_nodes_are_true(page: Path) -> None:
    true = {"methods": len(METHODS) - 1, "nodes": len(nodes.NODE_CLASS_MAPPINGS)}  # `none` is no method there
    for number, what in re.findall(rf"\b({'|'.join(NUMBERS)}) (methods|nodes)\b", page.read_text().lower()):
        assert NUMBERS.index(number) + 9 == true[what], f"{number} {what}"
