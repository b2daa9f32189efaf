"""Test that every text of a node is translated, and that the frontend can read the translations."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tools.record_locales import CARDS, FOLDER, LANGUAGES, TYPES, english_cards, phrases_of, translated
from tools.record_nodes import all_definitions

DEFINITIONS = all_definitions()


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_of_a_node_is_translated(language: str) -> None:
    """After a change of a text: python -m tools.record_nodes adds it to phrases.json, without a translation."""
    phrases = read(FOLDER / language / "phrases.json")
    assert list(phrases) == phrases_of(DEFINITIONS), "run python -m tools.record_nodes"
    assert [phrase for phrase, text in phrases.items() if not text.strip()] == [], "translate these phrases"


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_the_files_of_the_frontend_are_those_of_the_phrases(language: str) -> None:
    needed = phrases_of(DEFINITIONS)
    phrases = dict(zip(needed, needed, strict=True))
    if language != "en":
        phrases = read(FOLDER / language / "phrases.json")
    assert read(FOLDER / language / "nodeDefs.json") == translated(DEFINITIONS, phrases)
    assert set(read(FOLDER / language / "main.json")["dataTypes"]) == set(TYPES)
    assert read(CARDS)[language] == {
        name: {key: phrases[text] for key, text in card.items()} for name, card in english_cards().items()
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_keep_names_and_are_no_copies(language: str) -> None:
    phrases = read(FOLDER / language / "phrases.json")
    for phrase, text in phrases.items():
        # The names of files, options and environment variables, and values that are typed.
        for name in re.findall(r"[a-z]+_[a-z_]+|TOPS_[A-Z_]+|--[a-z-]+|\{prompt\}|models/[A-Z]+", phrase):
            assert name in text, (phrase, text)
    sentences = [phrase for phrase in phrases if phrase.endswith(".") and " " in phrase]
    assert [phrase for phrase in sentences if phrases[phrase] == phrase] == []


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_titles_and_names_have_no_signs_of_vue_i18n(language: str) -> None:
    """The frontend compiles all texts but tooltips, and these signs mean something to its compiler."""
    for node in read(FOLDER / language / "nodeDefs.json").values():
        slots = [*node["inputs"].values(), *node["outputs"].values()]
        for text in [node["display_name"], node["description"], *(slot["name"] for slot in slots)]:
            assert not set("{}@|") & set(text), text
