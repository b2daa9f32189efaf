"""Test that answers give their boxes and points in the original picture, whatever was pruned."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import Picture
from tests.support.checkpoints_qwen import save_qwen2_5_vl, save_qwen2_vl, save_qwen3_vl
from tests.support.checkpoints_thinking import write_instead
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.families import Family
from tops_engine.grounding.places import Box, Point
from tops_engine.settings import Generation, ModelSpec, Pruning

SAVE: dict[str, Callable[[Path], Path]] = {"qwen2.5-vl": save_qwen2_5_vl, "qwen3-vl": save_qwen3_vl}
#: A picture that the processors scale to 196 x 140 (patches of 14) or 192 x 128 (of 16) pixels.
SIZE = (200, 130)

#: The only answer that the grammar allows, so that a model without training gives it.
ANSWER = [
    {"bbox_2d": [98, 35, 147, 105], "label": "cat"},
    {"point_2d": [49, 70], "label": "nose"},
]


def schema() -> str:
    items = [
        {
            "type": "object",
            "properties": {name: {"const": value} for name, value in entry.items()},
            "required": list(entry),
            "additionalProperties": False,
        }
        for entry in ANSWER
    ]
    return json.dumps({"type": "array", "prefixItems": items, "items": False, "minItems": len(items)})


@pytest.fixture(scope="module", params=SAVE)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = SAVE[request.param](tmp_path_factory.mktemp(request.param))
    return Engine.load(ModelSpec(model=str(folder), device="cpu"))


def expected(family: Family) -> tuple[Box, Point]:
    """Return the places of ``ANSWER`` in a picture of ``SIZE``, by each family's unit."""
    units = {"qwen2_5_vl": (196, 140)}
    width, height = units.get(family.model.config.model_type, (1000, 1000))
    x, y = SIZE[0] / width, SIZE[1] / height
    edges = [round(value, 2) for value in (98 * x, 35 * y, 147 * x, 105 * y)]
    left, top, right, bottom = edges
    cat = Box(label="cat", left=left, top=top, right=right, bottom=bottom)
    return cat, Point(label="nose", x=round(49 * x, 2), y=round(70 * y, 2))


@pytest.mark.parametrize("keep", [pytest.param(1.0, marks=pytest.mark.full), 0.1])
def test_pruning_moves_neither_boxes_nor_positions(engine: Engine, picture: Picture, keep: float) -> None:
    messages = [user_message("Find the cat and its nose.", picture(*SIZE))]
    family, seen = engine.family, list[Tensor]()
    prompt = family.prepare(read_conversation(messages))
    handle = family.text_model.rotary_emb.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("position_ids", args[-1])), with_kwargs=True
    )
    try:
        answer = engine.chat(messages, Pruning(method="divprune", keep=keep), Generation(json_schema=schema()))
    finally:
        handle.remove()
    assert json.loads(answer.text) == ANSWER
    assert (answer.boxes, answer.points) == ([expected(family)[0]], [expected(family)[1]])
    # Each kept token has the time, row and column that it has in the whole picture.
    (kept,) = answer.token_map.stages[0][1]
    assert len(kept) == answer.usage.input_visual_tokens <= max(1, round(keep * answer.usage.visual_tokens))
    places = torch.ones(len(prompt.input_ids), dtype=torch.bool)
    places[prompt.spans[0].positions] = False
    places[prompt.spans[0].positions[kept]] = True
    torch.testing.assert_close(seen[0].view(3, -1), prompt.position_ids[:, places])


def test_the_pixels_are_those_of_the_picture_as_it_was_given(picture: Picture, tmp_path: Path) -> None:
    """The model writes pixels of what it saw, which is smaller than the picture in both ways of bounding it."""
    folder = save_qwen2_5_vl(tmp_path)
    family = Engine.load(ModelSpec(model=str(folder), device="cpu", max_pixels=56 * 56)).family
    prompt = family.prepare(read_conversation([user_message("Find the cat.", picture(*SIZE))]))
    ((width, height),) = family.processed_sizes(prompt)
    assert width * height <= 56 * 56
    half = f'{{"bbox_2d": [0, 0, {width / 2}, {height / 2}]}}'
    assert family.places(prompt, half).boxes == (Box(left=0, top=0, right=100, bottom=65),)


def test_an_answer_in_words_and_one_without_a_picture_have_no_places(engine: Engine, picture: Picture) -> None:
    answer = engine.chat([user_message("What?", picture(*SIZE))], generation=Generation(max_tokens=4))
    assert (answer.boxes, answer.points) == ([], [])
    prompt = engine.family.prepare(read_conversation([user_message("What?")]))
    assert not engine.family.places(prompt, json.dumps(ANSWER))


def test_the_beginning_of_the_answer_may_be_given(engine: Engine, picture: Picture) -> None:
    begun = '[{"bbox_2d": [98, 35, 147, 105], "label": "cat"}, '
    messages = [user_message("Find it.", picture(*SIZE)), {"role": "assistant", "content": begun}]
    answer = engine.chat(messages, generation=Generation(max_tokens=1))
    assert answer.boxes == [expected(engine.family)[0]]


def test_marks_that_are_special_tokens_are_read(tmp_path: Path, picture: Picture) -> None:
    """Qwen2-VL's marks are special tokens, which the text of an answer does not show."""
    mark = "<|box_end|>"
    save_qwen2_vl(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = tmp_path / name
        path.write_text(path.read_text().replace("<|vision_pad|>", mark))
    engine = Engine.load(ModelSpec(model=str(tmp_path), device="cpu"))
    begun = {"role": "assistant", "content": "<|box_start|>(100,200),(300,400)"}
    messages = [user_message("Find it.", picture(*SIZE)), begun]
    first = engine.chat(messages, generation=Generation(max_tokens=1))
    assert first.boxes == []
    write_instead(engine, mark, first.token_ids[0])
    answer = engine.chat(messages, generation=Generation(max_tokens=1))
    assert engine.family.tokenizer.convert_ids_to_tokens(answer.token_ids) == [mark]
    assert (answer.text, answer.boxes) == ("", [Box(left=20, top=26, right=60, bottom=52)])
