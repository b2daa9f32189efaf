"""Test that the streamed pieces join to the answer's text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.support.checkpoints import small_tokenizer
from tops_engine.generation import TextStream

TOKENIZER = small_tokenizer()
TEXTS = ["Hello, World!", "naïve café", "日本語のテキスト", "a👩‍👩‍👧b 🇫🇷", "tabs\tand\nlines", "", "  leading"]


def stream(token_ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    """Return all pieces of an answer, in the order of the decoding loop."""
    text_stream = TextStream(TOKENIZER, stop)
    pieces = []
    for token_id in token_ids:
        pieces.append(text_stream.push(token_id))
        if text_stream.stopped:
            break
    return [*pieces, text_stream.finish()], text_stream


@pytest.mark.parametrize("text", TEXTS)
def test_no_piece_holds_half_a_character(text: str) -> None:
    pieces, text_stream = stream(TOKENIZER.encode(text))
    assert "".join(pieces) == text.lstrip() == text_stream.text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@settings(deadline=None)
@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40))
def test_pieces_of_any_tokens_are_their_decoding(token_ids: list[int]) -> None:
    pieces, text_stream = stream(token_ids)
    assert "".join(pieces) == text_stream.text == TOKENIZER.decode(token_ids, skip_special_tokens=True).lstrip()


@settings(deadline=None)
@given(st.text("abc ", max_size=30), st.text("abc ", min_size=1, max_size=4))
def test_the_answer_ends_before_the_stop_string(text: str, stop: str) -> None:
    pieces, text_stream = stream(TOKENIZER.encode(text), (stop,))
    assert "".join(pieces) == text_stream.text == text.lstrip().partition(stop)[0]
    assert text_stream.stopped == (stop in text.lstrip())


def test_any_of_several_stop_strings_ends_the_answer() -> None:
    _, text_stream = stream(TOKENIZER.encode("one two three"), ("three", " two"))
    assert text_stream.text == "one"


def test_what_might_become_a_stop_string_is_held_back() -> None:
    text_stream = TextStream(TOKENIZER, ["END"])
    shown = [text_stream.push(token_id) for token_id in TOKENIZER.encode("xEN")]
    assert "".join(shown) == "x"
    assert text_stream.finish() == "EN"


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose decoder leaves out the white space in front of the first word, as Llama's does."""
    words = ["\u2581The", "\u2581cat", "s", "\u2581sat", "<unk>"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("continued", [[0], [0, 1]])
def test_an_answer_that_continues_a_text_can_be_joined_to_it(continued: list[int]) -> None:
    tokenizer = spaced_tokenizer()
    token_ids = [0, 1, 2, 3]
    text_stream = TextStream(tokenizer, continued=continued)
    pieces = [text_stream.push(token_id) for token_id in token_ids[len(continued) :]]
    assert "".join(pieces) + text_stream.finish() == text_stream.text
    assert tokenizer.decode(continued) + text_stream.text == tokenizer.decode(token_ids) == "The cats sat"


@settings(deadline=None)
@given(st.text(max_size=9), st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40))
def test_the_continuation_of_any_text_is_the_rest_of_the_decoding(begun: str, token_ids: list[int]) -> None:
    continued = TOKENIZER.encode(begun)
    text_stream = TextStream(TOKENIZER, continued=continued)
    pieces = [text_stream.push(token_id) for token_id in token_ids]
    whole = TOKENIZER.decode(continued + token_ids, skip_special_tokens=True)
    assert "".join(pieces) + text_stream.finish() == text_stream.text
    assert TOKENIZER.decode(continued, skip_special_tokens=True) + text_stream.text == whole


def test_special_tokens_are_not_shown() -> None:
    pieces, _ = stream([TOKENIZER.bos_token_id, *TOKENIZER.encode("hi"), TOKENIZER.eos_token_id])
    assert "".join(pieces) == "hi"
