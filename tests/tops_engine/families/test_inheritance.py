"""Test that families stay shallow: one file each, at most one shared base, everything else in parts."""

import ast
from pathlib import Path

import pytest

from tops_engine.families import FAMILIES, Family, parts

CLASSES = sorted(set(FAMILIES.values()), key=lambda family: family.__name__)


@pytest.mark.parametrize("family", CLASSES, ids=lambda family: family.__name__)
def test_a_family_is_at_most_two_classes_below_the_contract(family: type[Family]) -> None:
    below = [base.__name__ for base in family.__mro__ if base not in Family.__mro__]
    assert len(below) <= 2, f"{' -> '.join(below)} -> Family: hold a part of families/parts instead of inheriting"


def test_every_family_has_a_file_of_its_own() -> None:
    assert len({family.__module__ for family in CLASSES}) == len(CLASSES)


def test_parts_know_no_family() -> None:
    files = sorted(Path(parts.__path__[0]).glob("*.py"))
    assert len(files) > 10
    for file in files:
        imports = [node.module for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        of_families = [name for name in imports if name and name.startswith("tops_engine.families")]
        assert all(name.startswith("tops_engine.families.parts.") for name in of_families), file.name
