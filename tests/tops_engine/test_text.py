"""Test text that can be encoded."""

from hypothesis import given
from hypothesis import strategies as st

from tops_engine.text import valid_text, with_valid_texts


@given(st.text())
def test_valid_text_stays_as_it_is(text: str) -> None:
    assert valid_text(text) == text


@given(st.text())
def test_pairs_of_surrogates_are_joined(text: str) -> None:
    units = text.encode("utf-16-le")
    split = "".join(chr(int.from_bytes(units[i : i + 2], "little")) for i in range(0, len(units), 2))
    assert valid_text(split) == text


@given(st.text(st.characters(categories=None)))
def test_every_text_can_be_encoded(text: str) -> None:
    valid = valid_text(text)
    assert valid.encode().decode() == valid


def test_surrogates_without_a_partner_are_replaced_and_nothing_else() -> None:
    assert valid_text("cut \ud83d? \udce9 \ud83d\ude00\U0001f600é") == "cut \ufffd? \ufffd \U0001f600\U0001f600é"


def test_texts_inside_of_data_are_replaced_and_other_values_kept() -> None:
    data = {"\ud83d": ["\udce9", 3, None, {"a": True}]}
    assert with_valid_texts(data) == {"\ufffd": ["\ufffd", 3, None, {"a": True}]}
