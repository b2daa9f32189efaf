"""The second instrument's training rows say what its chat template says, and its projector is fitted to words."""

import random

import pytest
import torch
from transformers import AutoProcessor

from benchmarks.depth.models import mini, processor
from benchmarks.mini.data import labels_of
from benchmarks.mini.language import Reader
from benchmarks.mini.packing import Packer, Row, Speller
from benchmarks.smollm2 import alignment
from benchmarks.smollm2.alignment import words_of
from benchmarks.smollm2.model import CHAT_TEMPLATE, GRID, TURNS
from tops_engine.mini import mini_path
from tops_engine.mini.questions import SceneObject
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


def test_the_words_of_a_patch_name_its_content_and_place() -> None:
    star = SceneObject("shape", "red", "star", (0, 0, 28, 28))  # one patch of the top left
    word = SceneObject("word", "black", "KITE", (140, 308, 196, 336))  # bottom, in the middle
    digit = SceneObject("digit", "black", "7", (308, 140, 336, 168))  # right, in the middle
    labels, _ = labels_of([star, word, digit], GRID)
    words = [words_of(label.tolist(), *divmod(place, GRID), GRID) for place, label in enumerate(labels)]
    assert words[0] == (("red", 1.0), ("star", 1.0), ("top", 0.5), ("left", 0.5))
    assert words[11 * GRID + 5] == (
        *(("word", 1.0), ("K", 1.0), ("I", 0.75), ("T", 0.5), ("E", 0.25)),
        ("bottom", 0.5),
    )
    assert words[5 * GRID + 11] == (("digit", 1.0), ("7", 1.0), ("right", 0.5))
    assert words[1] == (("background", 1.0),)


def test_the_projector_is_fitted_to_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SCENES": 6, "CHUNK": 3, "STEPS": 300, "BATCH": 256}.items():
        monkeypatch.setattr(alignment, name, value)
    torch.manual_seed(0)
    model = mini()
    model.requires_grad_(False)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    for layer in (projector.linear_1, projector.linear_2):
        layer.reset_parameters()
    before = [parameter.clone() for parameter in model.parameters()]
    reader, speller = Reader(model, torch.device("cpu")), Speller(processor().tokenizer)
    assert alignment.align(model, reader, speller, GRID) < 0.9  # 1 is the error of the mean
    changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert changed == [parameter.requires_grad for parameter in model.parameters()]
