"""Test SmolVLM's videos: frames as single tiles in the text that the model knows, beside pictures."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import Picture
from tests.support.checkpoints import IMAGE_SIZE
from tests.support.checkpoints_idefics3 import save_smolvlm
from tests.support.slow_reference import greedy_tokens
from tops_engine.conversation.messages import Message, read_conversation, user_message, video_message
from tops_engine.engine import Engine
from tops_engine.families.smolvlm import in_words
from tops_engine.settings import Generation, ModelSpec, Pruning
from tops_engine.verification.transformers_model import generate


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder: Path = save_smolvlm(tmp_path_factory.mktemp("smolvlm"))
    return Engine.load(ModelSpec(model=str(folder), device="cpu"))


def test_a_frame_is_one_tile_behind_its_time(engine: Engine) -> None:
    family, colours = engine.family, [(0, 100, 250), (7, 7, 7), (255, 0, 1)]
    frames = [Image.new("RGB", (90, 60), colour) for colour in colours]
    prompt = family.prepare(read_conversation([video_message("What happens?", frames, fps=0.5)]))
    (layout,) = (span.layout for span in prompt.spans)
    assert (layout.grids, layout.num_tokens) == (((2, 2),), 12)
    shown = "<fake_token_around_image><global-img><image><image><image><image><fake_token_around_image>"
    times = "\n".join(f"Frame from 00:0{second}:{shown}" for second in (0, 2, 4))
    intro = "You are provided the following series of three frames from a 0:00:06 [H:MM:SS] video."
    assert family.tokenizer.decode(prompt.input_ids) == (
        f"<|im_start|>User: {intro}\n\n{times}\n\nWhat happens?<end_of_utterance>\nAssistant:"
    )
    expected = torch.tensor(colours)[:, :, None, None] / 127.5 - 1
    torch.testing.assert_close(prompt.pixels["pixel_values"][0], expected.expand(3, 3, IMAGE_SIZE, IMAGE_SIZE))


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_a_video_between_pictures(engine: Engine, picture: Picture, keep: float) -> None:
    parts = [
        user_message("First", picture(60, 50, 1)),
        video_message("then", [picture(90, 40, seed) for seed in range(2)], fps=1.0),
        user_message("last", picture(200, 60, 2)),
    ]
    messages: list[Message] = [{"role": "user", "content": [part for message in parts for part in message["content"]]}]
    pruning, family = Pruning(keep=keep, positions="original"), engine.family
    answer = engine.chat(messages, pruning, Generation(max_tokens=5))
    if keep == 1.0:
        assert answer.token_ids == generate(family, family.prepare(read_conversation(messages)), 5).tokens
    else:
        assert answer.token_ids == greedy_tokens(family, messages, answer, "original", len(answer.token_ids))
    assert answer.usage.video_frames == [2]


def test_numbers_in_words() -> None:
    numbers = {2: "two", 16: "sixteen", 21: "twenty-one", 60: "sixty", 100: "one hundred"}
    numbers |= {121: "one hundred and twenty-one", 768: "seven hundred and sixty-eight"}
    assert {number: in_words(number) for number in numbers} == numbers
