"""Damaged pictures: asked of the engine and of the chat model, opened frame by frame, and made ready to send."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_tops import ChatTOPSLlava, image_block

from tests.fuzz.mutations import Mutator
from tests.fuzz.pictures import Pictures, anything
from tests.fuzz.rules import level_memory, seeds, survives
from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine, shared_engine
from tops_engine.media.images import image_file, num_pixels, open_frames, png_texts
from tops_engine.settings import Generation, ModelSpec

SAMPLE = Path(__file__).parents[2] / "tops_engine" / "mini" / "sample.jpg"
ONE_TOKEN = Generation(max_tokens=1)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = shared_engine(ModelSpec(model="mini", device="cpu"))
    question = [user_message("What number is written?", SAMPLE)]
    before = engine.chat(question).text
    yield engine
    assert engine.chat(question).text == before, "the engine stays usable"


@pytest.fixture(scope="module")
def model() -> ChatTOPSLlava:
    return ChatTOPSLlava(model="mini", device="cpu", max_tokens=1)


def test_damaged_pictures_are_answered_or_refused(engine: Engine, model: ChatTOPSLlava) -> None:
    with level_memory("pictures"):
        for seed in seeds("pictures"):
            mutator, case = Mutator(seed), f"picture {seed}"
            pictures = Pictures(mutator)
            if seed % 3 == 0:
                ask_the_chat_model(model, pictures, case)
            else:
                source = pictures.source() if mutator.random.random() < 0.9 else anything(mutator)
                answer = survives(case, engine.chat, [user_message("What?", source)], None, ONE_TOKEN)
                assert answer is None or isinstance(answer, Answer)
            content = pictures.file()
            survives(case, open_frames, content)
            survives(case, image_file, content)
            survives(case, png_texts, content)
            assert survives(case, num_pixels, content) >= 0


def ask_the_chat_model(model: ChatTOPSLlava, pictures: Pictures, case: str) -> None:
    content, kind = pictures.file(), pictures.random.randrange(5)
    block: Any
    if kind == 0:
        block = survives(case, image_block, pictures.source())
    elif kind == 1:
        block = {"type": "image_url", "image_url": {"url": pictures.data_url(content)}}
    elif kind == 2:
        block = {"type": "image", "base64": pictures.text(content), "mime_type": "image/png"}
    elif kind == 3:
        source = {"type": "base64", "media_type": "image/jpeg", "data": pictures.text(content)}
        block = {"type": "image", "source": source}
    else:
        block = {"type": "media", "mime_type": "image/png", "data": content}
    if block is not None:
        message = HumanMessage([block, {"type": "text", "text": "What?"}])
        survives(case, model.invoke, [message])
