"""Test how model arguments of lmms-eval become settings; lmms-eval itself is not needed."""

from typing import Any

import pytest
from lmms_eval_tops.arguments import read_arguments, task_generation
from lmms_eval_tops.messages import PADDING, engine_messages
from PIL import Image

from tops_engine.conversation.messages import read_conversation
from tops_engine.errors import InvalidInput
from tops_engine.settings import Generation, ModelSpec, Pruning


def test_arguments_are_sorted_by_the_settings_that_they_belong_to() -> None:
    read = read_arguments(
        {
            # As lmms-eval parses model=mini,compile=false,revision=2024,keep=0.222,alpha=1,criteria='a,b'
            "model": "mini",
            "compile": False,
            "revision": 2024,
            "keep": 0.222,
            "alpha": 1,
            "criteria": "'relevance,coverage'",
            "max_tokens": 8,
            "system_prompt": '"Be brief, please."',
            "batch_size": 4,
            "device": "cpu",
            "max_batch_size": None,
        }
    )
    assert read.spec == ModelSpec(model="mini", device="cpu", revision="2024")
    assert read.pruning.resolved() == Pruning(keep=0.222, alpha=1.0, criteria="relevance,coverage").resolved()
    assert Generation(**read.generation) == Generation(max_tokens=8)
    assert (read.batch_size, read.system_prompt, read.journal) == (4, "Be brief, please.", None)


@pytest.mark.parametrize("keep", [64, 0.111, 1.0])
def test_a_budget_keeps_its_kind(keep: float) -> None:
    pruning = read_arguments({"model": "mini", "keep": keep}).pruning
    assert pruning.keep == keep
    assert type(pruning.keep) is type(keep)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"keeep": 0.2}, "keeep"),
        ({"method": "nothing"}, "There is no method"),
        ({"batch_size": "auto"}, "number of prompts"),
        ({"dtype": "int3"}, "dtype"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        read_arguments({"model": "mini"} | wrong)


def test_the_options_of_a_task_are_used_unless_others_are_given() -> None:
    task = {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False, "until": ["\n\n"]}
    assert task_generation(task, {}) == Generation(max_tokens=16)
    assert task_generation(task, {"max_tokens": "32", "stop": "."}) == Generation(max_tokens=32, stop=(".",))
    drawn = task_generation({"temperature": 0.7, "do_sample": True, "top_p": None}, {"seed": "3"})
    assert drawn == Generation(temperature=0.7, seed=3)
    with pytest.raises(InvalidInput, match="beams"):
        task_generation({"num_beams": 5}, {})


def test_pictures_are_padded_to_a_square_around_their_middle() -> None:
    content = [{"type": "image", "url": Image.new("RGB", (8, 4), "white")}]
    (message,) = engine_messages([{"role": "user", "content": content}], None, pad_to_square=True)
    picture = message["content"][0]["image"]
    assert picture.size == (8, 8)
    assert [picture.getpixel((4, row)) for row in (0, 3, 7)] == [PADDING, (255, 255, 255), PADDING]


def test_messages_keep_the_order_of_pictures_and_text() -> None:
    picture = Image.new("RGB", (8, 8))
    content = [{"type": "image", "url": picture}, {"type": "text", "text": "What?"}]
    given: list[dict[str, Any]] = [
        {"role": "system", "content": [{"type": "text", "text": "Old."}]},
        {"role": "user", "content": content},
    ]
    read = read_conversation(engine_messages(given, "Be brief."))
    assert [message["role"] for message in read.messages] == ["system", "user"]
    assert len(read.images) == 1
    assert read.question == "What?"
    assert engine_messages(given, "Be brief.")[0]["content"][0]["text"] == "Be brief."
    assert engine_messages(given, None)[0]["content"][0]["text"] == "Old."
    with pytest.raises(InvalidInput, match="audio"):
        engine_messages([{"role": "user", "content": [{"type": "audio", "url": "x.wav"}]}], None)
