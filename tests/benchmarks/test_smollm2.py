"""The second instrument's training rows say what its chat template says."""

import random

from transformers import AutoProcessor

from benchmarks.mini.packing import Packer, Row, Speller
from benchmarks.smollm2.model import CHAT_TEMPLATE, GRID, TURNS
from tops_engine.mini import mini_path
from tops_engine.mini.scenes import generate


def test_a_row_has_the_text_of_the_chat_template() -> None:
    tokenizer = AutoProcessor.from_pretrained(mini_path()).tokenizer
    packer = Packer(Speller(tokenizer), GRID, "test", TURNS)
    question = generate(800_000, "test").questions[0]
    row = packer.test_row(800_000, [0, 1], [question], 1000)
    picture = [{"type": "image"}, {"type": "text", "text": question.text}]
    messages = [{"role": "user", "content": picture}, {"role": "assistant", "content": question.answer}]
    expected = tokenizer.apply_chat_template(messages, chat_template=CHAT_TEMPLATE, tokenize=False)

    # The end of an answer is the tokenizer's own token: </s> for mini, <|im_end|> for SmolLM2.
    assert written(row, tokenizer).replace("</s>", "<|im_end|>\n") == expected


def test_a_system_message_and_rows_without_a_picture_have_that_text_too() -> None:
    tokenizer = AutoProcessor.from_pretrained(mini_path()).tokenizer
    packer = Packer(Speller(tokenizer), GRID, "train", TURNS)
    texts = [written(packer.blind_row(200, random.Random(seed)), tokenizer) for seed in range(20)]

    assert any(text.startswith("<|im_start|>system\n") for text in texts)
    for text in texts:
        after_system = text.split("<|im_end|>\n", 1)[1] if text.startswith("<|im_start|>system\n") else text
        assert after_system.startswith("<|im_start|>user\n")
        assert "User:" not in text
        assert "Assistant:" not in text


def written(row: Row, tokenizer: object) -> str:
    """Return a row's text, with one placeholder for all visual tokens of a picture."""
    pieces: list[str] = []
    ids: list[int] = []
    for number in [*row.ids, None]:
        if number is not None and number >= 0:
            ids.append(number)
            continue
        pieces += [tokenizer.decode(ids)] * bool(ids)  # type: ignore[attr-defined]
        ids = []
        if number is not None and pieces[-1:] != ["<image>"]:
            pieces.append("<image>")
    return "".join(pieces)
