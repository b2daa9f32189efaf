"""Test Granite Vision 3: the class of LLaVA-NeXT over a text model that multiplies its embeddings."""

from pathlib import Path

import pytest

from tests.conftest import Picture
from tests.support.checkpoints import save_granite_vision
from tests.support.slow_reference import greedy_tokens
from tops_engine.conversation.messages import Message, read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.settings import Generation, ModelSpec, Pruning
from tops_engine.verification.transformers_model import generate


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder: Path = save_granite_vision(tmp_path_factory.mktemp("granite"))
    return Engine.load(ModelSpec(model=str(folder), device="cpu"))


def test_answers_are_those_of_transformers_and_of_the_masked_reference(engine: Engine, picture: Picture) -> None:
    family, generation = engine.family, Generation(max_tokens=5)
    conversations: list[list[Message]] = [
        [user_message("Who?")],
        [user_message("Compare.", picture(60, 90, 1), picture(70, 60, 2))],
    ]
    answers = engine.batch(conversations, Pruning(keep=1.0), generation)
    prompts = [family.prepare(read_conversation(messages)) for messages in conversations]
    assert [answer.token_ids for answer in answers] == [generate(family, prompt, 5).tokens for prompt in prompts]
    pruned = engine.chat(conversations[1], Pruning(keep=0.4, positions="original"), generation)
    expected = greedy_tokens(family, conversations[1], pruned, "original", len(pruned.token_ids))
    assert pruned.token_ids == expected
