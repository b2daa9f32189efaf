"""Test pruned Mistral 3 in vLLM: the text after each row of a picture's tokens is always kept."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from vllm_tops.settings import for_vllm

from tests.conftest import Picture
from tests.integrations.vllm_tops.servers import as_url, asking
from tests.integrations.vllm_tops.test_models import HEADS, METHODS, Served, assert_same
from tests.support.checkpoints_mistral import save_mistral3
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.settings import Generation, ModelSpec, Pruning

pytestmark = pytest.mark.vllm

SIZES = [(160, 120), (60, 160), (196, 196), (33, 90)]


@pytest.fixture(scope="module", params=["mistral", "ministral3"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    import vllm_tops

    folder = save_mistral3(tmp_path_factory.mktemp("loaded") / "mistral", request.param, **HEADS)
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
    requests = [loaded.request(images[:2]), loaded.request(images[2:], tops_keep=0.2)]
    counts = [count for request in requests for count in request["counts"]]
    family = loaded.engine.family
    for number, (image, tokens) in enumerate(zip(images, loaded.embeddings(*requests), strict=True)):
        indices, features = loaded.expected(image, for_vllm(Pruning.from_label(method, [0.5, 0.2][number // 2])))
        prompt = family.prepare(read_conversation([user_message("?", image)]))
        positions = prompt.spans[0].positions
        # The last token of the last row is followed by one of text.
        places = range(int(positions[0]), int(positions[-1]) + 2)
        kept = dict(zip(positions[indices].tolist(), features, strict=True))
        dropped = set(positions.tolist()) - kept.keys()
        with torch.inference_mode():
            text = family.decoder.embed(prompt.input_ids)
        expected = [kept.get(place, text[place]) for place in places if place not in dropped]
        assert counts[number] == len(tokens) == len(expected)
        assert_same(tokens, torch.stack(expected))


def test_answers_are_those_of_the_engine(tmp_path: Path, picture: Picture) -> None:
    from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, environment, serving

    folder = str(save_mistral3(tmp_path / "mistral", **HEADS))
    engine = Engine.load(ModelSpec(model=folder, device="cpu"))
    command = [*TOPS, "serve", folder, "--keep", "0.4", "--served-model-name", "mini", *OPTIONS]
    with serving([(command, environment())], tmp_path) as (server,):
        for chosen in ([0], [1, 2], [2, 3, 0]):
            images = [picture(*SIZES[number], number) for number in chosen]
            answer = engine.chat(
                [user_message("What is shown here?", *images)],
                Pruning(keep=0.4, stages="first"),
                Generation(max_tokens=12),
            )
            request = asking("What is shown here?", *map(as_url, images), max_tokens=12)
            written = server.client.chat.completions.create(**request).choices[0].message.content
            # If an answer ends within a character, only one of the two shows the replacement character.
            assert written.rstrip("\ufffd").strip() == answer.text.rstrip("\ufffd").strip()
