"""Compare what methods see between layers with transformers' own attention maps, keys and states."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import Picture
from tests.support.checkpoints import save_llava
from tests.support.slow_reference import model_inputs_embeds
from tops_engine.budget import Keep, Stage
from tops_engine.conversation.messages import Message, read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.methods import METHODS, LayerTokens, Method, Selection
from tops_engine.settings import Generation, ModelSpec, Pruning

LAYER = 3


@pytest.fixture
def seen() -> Iterator[list[dict[str, Tensor]]]:
    """Return what a method at layer 3 sees of each image."""
    images_seen: list[dict[str, Tensor]] = []

    class Watching(Method):
        """A method that records what it sees and keeps the first tokens."""

        name = "watching"
        source = "this test"

        def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
            return (Stage(LAYER, 5),)

        def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
            for image in images:
                images_seen.append(
                    {
                        "hidden_states": image.hidden_states,
                        "next text": image.attention("text"),
                        "next last": image.attention("last"),
                        "previous text": image.attention("text", layer="previous"),
                        "previous text max": image.attention("text", layer="previous", heads="max"),
                        "previous image max": image.attention("image", layer="previous", heads="max"),
                        "text_similarity": image.text_similarity(),
                        "normed_states": image.normed_states(),
                        "previous_keys": image.previous_keys(),
                        "previous_states": image.previous_states(),
                    }
                )
            return [Selection(torch.arange(count)) for count in counts]

    yield images_seen
    METHODS.remove("watching")


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_layer_tokens_are_the_models_own(
    tmp_path: Path, picture: Picture, seen: list[dict[str, Tensor]], kind: str
) -> None:
    engine = Engine.load(ModelSpec(model=str(save_llava(tmp_path, kind)), device="cpu", attention="eager"))
    conversations: list[list[Message]] = [
        [user_message("Which of the two is larger?", picture(80, 60), picture(60, 60, 1))],
        [user_message("What?", picture(60, 60, 2))],
    ]
    engine.batch(conversations, Pruning(method="watching"), Generation(max_tokens=1))
    images = iter(seen)
    for messages in conversations:
        for expected in _expected(engine, messages):
            shown = next(images)
            assert shown.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(shown[name], value, atol=1e-4, rtol=1e-4, msg=name)
    assert next(images, None) is None


def _expected(engine: Engine, messages: list[Message]) -> Iterator[dict[str, Tensor]]:
    family = engine.family
    prompt = family.prepare(read_conversation(messages))
    embeds = model_inputs_embeds(family, prompt)
    model: Any = family.model.model.language_model
    with torch.inference_mode():
        output = model(inputs_embeds=embeds, output_attentions=True, output_hidden_states=True, use_cache=True)
    is_text = torch.ones(len(prompt.input_ids), dtype=torch.bool)
    for span in prompt.spans:
        is_text[span.positions] = False
    for span in prompt.spans:
        text = is_text.nonzero().flatten()
        text, image = text[text > span.positions[-1]], span.positions
        both = torch.cat([image, text])
        hidden = output.hidden_states[LAYER][0]
        before, after = output.attentions[LAYER - 1][0], output.attentions[LAYER][0]
        yield {
            "hidden_states": hidden[image],
            "next text": after[:, text][:, :, image].mean(dim=0),
            "next last": after[:, -1:, image].mean(dim=0),
            "previous text": before[:, text][:, :, image].mean(dim=0),
            "previous text max": before[:, text][:, :, image].amax(dim=0),
            "previous image max": before[:, image][:, :, image].amax(dim=0),
            "text_similarity": embeds[0, image] @ embeds[0, text].T,
            "normed_states": model.norm(hidden[both]),
            "previous_states": output.hidden_states[LAYER - 1][0][image],
            "previous_keys": output.past_key_values.layers[LAYER - 1].keys[0][:, both].transpose(0, 1).flatten(1),
        }
