"""Test `tops serve` with InternVL: tiles and a thumbnail between two text tokens, and videos with text between."""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import Picture
from tests.integrations.vllm_tops.servers import as_url, asking
from tests.support.checkpoints_internvl import TOKENS_PER_TILE, save_internvl
from tops_engine.answers.report import Answer
from tops_engine.engine import Engine
from tops_engine.settings import Generation, ModelSpec, Pruning

pytestmark = pytest.mark.vllm

PRUNING = Pruning(keep=0.5, stages="first")
QUESTION = {"type": "text", "text": "What is shown here?"}

# 12, 8 and 3 tiles and an uncut picture: 13, 9, 4 and 1 with the thumbnail.
SIZES = [(300, 225), (224, 112), (168, 56), (56, 56)]
TILES = [13, 9, 4, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_internvl(tmp_path_factory.mktemp("internvl"), num_attention_heads=2, num_key_value_heads=2)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, environment, serving

    options = ["--served-model-name", "mini", "--trust-request-mm-kwargs", *OPTIONS]
    command = [*TOPS, "serve", str(folder), "--keep", "0.5", *options]
    with serving([(command, environment())], tmp_path_factory.mktemp("logs")) as (started,):
        yield started


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.load(ModelSpec(model=str(folder), device="cpu"))


def ask(engine: Engine, content: Sequence[Any], pruning: Pruning = PRUNING) -> Answer:
    return engine.chat([{"role": "user", "content": list(content)}], pruning, Generation(max_tokens=12))


def ask_server(server: Any, content: Sequence[Any]) -> Any:
    message = {"role": "user", "content": list(content)}
    return server.client.chat.completions.create(**asking("", max_tokens=12) | {"messages": [message]})


def assert_same(completion: Any, answer: Answer) -> None:
    # If an answer ends within a character, only one of the two shows the replacement character.
    assert completion.choices[0].message.content.rstrip("\ufffd") == answer.text.rstrip("\ufffd")


@pytest.mark.parametrize("chosen", [[0], [1], [2], [3], [3, 0], [2, 1, 0], [0, 0, 1, 3]])
def test_answers_are_those_of_the_engine(server: Any, engine: Engine, picture: Picture, chosen: list[int]) -> None:
    images = [picture(*SIZES[number], seed) for seed, number in enumerate(chosen)]
    answer = ask(engine, [*({"type": "image", "image": image} for image in images), QUESTION])
    content = [*(picture_part(image) for image in images), QUESTION]
    first = ask_server(server, content)
    hits = server.metric("vllm:prefix_cache_hits_total")
    again = ask_server(server, content)
    assert_same(first, answer)
    assert_same(again, answer)
    # The cached tokens are full blocks of 32, without the last token.
    assert server.metric("vllm:prefix_cache_hits_total") - hits == (first.usage.prompt_tokens - 1) // 32 * 32
    tokens = [TILES[number] * TOKENS_PER_TILE for number in chosen]
    dropped = sum(count - count // 2 for count in tokens)
    assert first.usage.prompt_tokens == answer.usage.prompt_tokens - dropped


def test_a_request_may_have_its_pictures_cut_in_fewer_tiles(server: Any, picture: Picture) -> None:
    image = picture(224, 112, 3)

    def prompt_tokens(**options: Any) -> int:
        message = {"role": "user", "content": [picture_part(image), QUESTION]}
        request = asking("", max_tokens=1, extra_body={"mm_processor_kwargs": options}) | {"messages": [message]}
        return int(server.client.chat.completions.create(**request).usage.prompt_tokens)

    as_configured = prompt_tokens()
    # At most 2 x 1 tiles and the thumbnail, then the uncut picture.
    assert as_configured - prompt_tokens(max_patches=2) == (9 - 3) * TOKENS_PER_TILE // 2
    assert as_configured - prompt_tokens(crop_to_patches=False) == (9 - 1) * TOKENS_PER_TILE // 2
    assert as_configured - prompt_tokens(max_patches=2, tops_keep=0.25) == (2 * 9 - 3) * TOKENS_PER_TILE // 4
    assert as_configured == prompt_tokens()


def test_videos_are_pruned_as_by_the_engine(server: Any, engine: Engine, picture: Picture) -> None:
    image, frames = picture(224, 112, 1), [as_jpeg(picture(96, 64, seed)) for seed in range(3)]
    decoded = {"type": "video", "video": [Image.open(io.BytesIO(frame)) for frame in frames]}
    url = "data:video/jpeg;base64," + ",".join(base64.b64encode(frame).decode() for frame in frames)
    video = {"type": "video_url", "video_url": {"url": url}}
    for before, part in (([], []), ([{"type": "image", "image": image}], [picture_part(image)])):
        answer = ask(engine, [*before, decoded, QUESTION])
        for completion in (ask_server(server, [*part, video, QUESTION]), ask_server(server, [*part, video, QUESTION])):
            assert completion.usage.prompt_tokens == answer.usage.input_tokens
            assert_same(completion, answer)


def test_the_layout_with_remote_code_is_refused(tmp_path: Path) -> None:
    from tests.integrations.vllm_tops.servers import TOPS, environment, refusal

    config = {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "auto_map": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    sentence = "Error: InternVLChatModel cannot be pruned in vLLM yet; these can: "
    assert refusal([*TOPS, "serve", str(tmp_path), "--keep", "0.2"], environment()).startswith(sentence)


def picture_part(image: Image.Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": as_url(image)}}


def as_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
