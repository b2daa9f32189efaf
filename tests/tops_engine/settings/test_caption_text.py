"""Test what becomes of a caption."""

import pytest

from tops_engine.settings import CaptionText

TAGS = "red hair, Smile, red hair, a park, smile."


@pytest.mark.parametrize(
    ("options", "caption", "text"),
    [
        ({}, " A cat\n on a mat. ", "A cat on a mat."),
        ({"trigger": "sks"}, "A cat.", "sks, A cat."),
        ({"trigger": "sks"}, "A photo of SKS, a cat.", "A photo of SKS, a cat."),
        ({"trigger": "cat"}, "Two cats.", "cat, Two cats."),
        ({"trigger": "sks"}, "", "sks"),
        ({"prefix": "Photo of", "suffix": "on film"}, "a cat", "Photo of a cat on film"),
        ({"trigger": "sks", "prefix": "photo,", "suffix": ", film"}, "a cat", "photo, sks, a cat, film"),
        ({"tag_order": "written"}, TAGS, "red hair, Smile, a park"),
        ({"tag_order": "alphabetical"}, TAGS, "a park, red hair, Smile"),
        ({"tag_order": "alphabetical", "trigger": "Smile"}, TAGS, "Smile, a park, red hair"),
        ({"tag_order": "alphabetical"}, "- one\ntwo", "- one, two"),
    ],
)
def test_the_text_of_a_caption(options: dict[str, str], caption: str, text: str) -> None:
    assert CaptionText(**options).apply(caption) == text


def test_only_what_changes_the_text_belongs_to_a_run() -> None:
    assert CaptionText(write_txt=True, existing_txt="overwrite").wording() == {}
    assert CaptionText(trigger="sks", write_txt=True).wording() == {"trigger": "sks"}
