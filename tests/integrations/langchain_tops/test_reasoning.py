"""Test the reasoning of thinking models in LangChain messages."""

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_tops import ChatTOPSLlava
from pydantic import BaseModel

from tests.support.checkpoints_thinking import save_thinking
from tops_engine.conversation.messages import user_message
from tops_engine.engine import shared_engine
from tops_engine.settings import Generation, ModelSpec

QUESTION = "What number is written?"


class Number(BaseModel):
    number: int


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_thinking(tmp_path_factory.mktemp("thinking"), "switched"))


@pytest.fixture
def model(folder: str) -> ChatTOPSLlava:
    return ChatTOPSLlava(model=folder, device="cpu", max_tokens=16, thinking=5)


def test_the_reasoning_is_a_block_before_the_text(model: ChatTOPSLlava, folder: str) -> None:
    engine = shared_engine(ModelSpec(model=folder, device="cpu"))
    expected = engine.chat([user_message(QUESTION)], generation=Generation(max_tokens=16, thinking=5))
    message = model.invoke(QUESTION)
    assert message.content == expected.text
    assert message.content_blocks == [
        {"type": "reasoning", "reasoning": expected.reasoning},
        {"type": "text", "text": expected.text},
    ]
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_token_details"] == {"reasoning": 5}
    off = model.invoke(QUESTION, thinking="off")
    assert [block["type"] for block in off.content_blocks] == ["text"]


def test_the_reasoning_streams_before_the_text(model: ChatTOPSLlava) -> None:
    chunks = list(model.stream(QUESTION))
    kinds = [block["type"] for one in chunks for block in one.content_blocks]
    assert kinds == sorted(kinds)
    merged = AIMessageChunk(content="")
    for one in chunks:
        merged += one
    whole = model.invoke(QUESTION)
    assert merged.text == whole.text
    reasoning = merged.additional_kwargs["reasoning_content"]
    assert reasoning.rstrip() == whole.additional_kwargs["reasoning_content"]
    assert merged.usage_metadata == whole.usage_metadata


def test_structured_output_and_later_turns_hold_no_reasoning(model: ChatTOPSLlava) -> None:
    pytest.importorskip("llguidance")
    structured = model.with_structured_output(Number, include_raw=True, max_tokens=60).invoke(QUESTION)
    assert isinstance(structured["parsed"], Number)
    assert structured["raw"].additional_kwargs["reasoning_content"]
    said = model.invoke(QUESTION)
    plain = said.model_copy(update={"additional_kwargs": {}})
    turns = [[HumanMessage(QUESTION), message, HumanMessage("Why?")] for message in (said, plain)]
    assert model.get_num_tokens_from_messages(turns[0]) == model.get_num_tokens_from_messages(turns[1])


def test_a_model_without_thinking_is_left_alone(model_without: ChatTOPSLlava) -> None:
    message = model_without.invoke(QUESTION)
    assert message.additional_kwargs == {}
    assert message.usage_metadata is not None
    assert "output_token_details" not in message.usage_metadata


@pytest.fixture
def model_without() -> ChatTOPSLlava:
    return ChatTOPSLlava(model="mini", device="cpu", max_tokens=2)
