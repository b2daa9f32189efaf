"""Damaged conversations: asked of the engine and of the chat model, and counted."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_tops import ChatTOPSLlava

from tests.fuzz.conversations import OF_ENGINE, of_langchain
from tests.fuzz.mutations import Mutator
from tests.fuzz.rules import level_memory, seeds, survives
from tops_engine.engine import Engine, shared_engine
from tops_engine.settings import Generation, ModelSpec

KINDS = {"human": HumanMessage, "ai": AIMessage, "system": SystemMessage, "tool": ToolMessage, "chat": ChatMessage}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return shared_engine(ModelSpec(model="mini", device="cpu"))


@pytest.fixture(scope="module")
def model() -> ChatTOPSLlava:
    return ChatTOPSLlava(model="mini", device="cpu", max_tokens=1)


def test_damaged_conversations_are_answered_or_refused(engine: Engine) -> None:
    with level_memory("conversations"):
        for seed in seeds("conversations"):
            messages, case = Mutator(seed).value(OF_ENGINE[seed % len(OF_ENGINE)]), f"conversation {seed}"
            survives(case, engine.chat, messages, None, Generation(max_tokens=1))
            survives(case, engine.count_tokens, messages)


def test_damaged_langchain_messages_are_answered_or_refused(model: ChatTOPSLlava) -> None:
    with level_memory("LangChain messages"):
        for seed in seeds("LangChain messages"):
            messages, case = langchain_messages(Mutator(seed).value(of_langchain(seed))), f"messages {seed}"
            if messages:
                survives(case, model.invoke, messages)
                survives(case, model.get_num_tokens_from_messages, messages)


def langchain_messages(damaged: Any) -> list[BaseMessage]:
    """Return LangChain's messages of damaged arguments, without those that LangChain itself refuses to make."""
    messages: list[BaseMessage] = []
    for arguments in damaged if isinstance(damaged, list) else []:
        if isinstance(arguments, dict):
            kind = KINDS.get(str(arguments.pop("kind", "chat")), ChatMessage)
            try:
                messages.append(kind(**arguments))
            except Exception:  # LangChain's own check of its arguments
                continue
    return messages
