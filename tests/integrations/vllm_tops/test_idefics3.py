"""Test pruned Idefics3 and SmolVLM in vLLM: the text between the tiles is always kept."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_tops.settings import for_vllm

from tests.conftest import Picture
from tests.integrations.vllm_tops.servers import as_url, asking
from tests.integrations.vllm_tops.test_models import METHODS, Served, assert_same
from tests.support.checkpoints_idefics3 import TOKENS_PER_TILE, save_idefics3, save_smolvlm
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.settings import Generation, ModelSpec, Pruning

pytestmark = pytest.mark.vllm

QUESTION = "What is shown here?"

# These are cut into 3 x 4, 1 x 4, 4 x 4 and 4 x 2 tiles, each with the whole picture.
SIZES = [(160, 120), (200, 50), (56, 56), (90, 200)]
TILES = [13, 5, 17, 9]


# vLLM's attention on a CPU requires a head size of at least 32.
HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.fixture(scope="module", params=[save_idefics3, save_smolvlm])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    import vllm_tops

    folder = request.param(tmp_path_factory.mktemp("loaded"), **HEADS)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("TOPS_KEEP", "0.5")
        # vLLM's own runner for CPUs does this before it loads a model.
        patch.setattr(torch.accelerator, "empty_cache", lambda: None)
        vllm_tops.register()
        yield Served(folder, stack)


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_becomes_its_text_and_the_tokens_that_the_engine_keeps(
    loaded: Served, picture: Picture, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("TOPS_METHOD", method)
    images = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    requests = [loaded.request(images[:3]), loaded.request(images[3:], tops_keep=0.2)]
    counts = [count for request in requests for count in request["counts"]]
    family = loaded.engine.family
    for number, (image, tokens) in enumerate(zip(images, loaded.embeddings(*requests), strict=True)):
        indices, features = loaded.expected(image, for_vllm(Pruning.from_label(method, [0.5, 0.2][number // 3])))
        prompt = family.prepare(read_conversation([user_message("?", image)]))
        positions = prompt.spans[0].positions
        # A token of text before the first tile's tokens and its row and column, one behind the last tile's.
        places = range(int(positions[0]) - 2, int(positions[-1]) + 2)
        kept = dict(zip(positions[indices].tolist(), features, strict=True))
        dropped = set(positions.tolist()) - kept.keys()
        with torch.inference_mode():
            text = family.decoder.embed(prompt.input_ids)
        expected = [kept.get(place, text[place]) for place in places if place not in dropped]
        assert counts[number] == len(tokens) == len(expected)
        assert_same(tokens, torch.stack(expected))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_idefics3(tmp_path_factory.mktemp("idefics3"), **HEADS)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, environment, serving

    command = [*TOPS, "serve", str(folder), "--keep", "0.5", "--served-model-name", "mini", *OPTIONS]
    with serving([(command, environment())], tmp_path_factory.mktemp("logs")) as (started,):
        yield started


@pytest.mark.parametrize("chosen", [[0], [1], [2], [3], [1, 0], [3, 2, 1], [1, 1]])
def test_answers_are_those_of_the_engine(server: Any, folder: Path, picture: Picture, chosen: list[int]) -> None:
    images = [picture(*SIZES[number], seed) for seed, number in enumerate(chosen)]
    engine = Engine.load(ModelSpec(model=str(folder), device="cpu"))
    pruning = Pruning(keep=0.5, stages="first")
    answer = engine.chat([user_message(QUESTION, *images)], pruning, Generation(max_tokens=12))
    request = asking(QUESTION, *map(as_url, images), max_tokens=12)
    first, again = (server.client.chat.completions.create(**request) for _ in range(2))
    # If an answer ends within a character, only one of the two shows the replacement character.
    assert first.choices[0].message.content.rstrip("\ufffd") == answer.text.rstrip("\ufffd")
    assert again.choices[0].message.content == first.choices[0].message.content
    tokens = [TILES[number] * TOKENS_PER_TILE for number in chosen]
    dropped = sum(count - count // 2 for count in tokens)
    assert first.usage.prompt_tokens == answer.usage.prompt_tokens - dropped
