"""Test `tops serve` with Qwen-VL models: kept tokens of pictures and videos at their own 3-D positions."""

import asyncio
import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from vllm_tops.settings import for_vllm

from tests.conftest import Picture
from tests.integrations.vllm_tops.servers import as_url, asking
from tests.integrations.vllm_tops.test_models import BLOCKS, HEADS, INTERLEAVED
from tests.support.checkpoints_qwen import save_qwen2_5_vl, save_qwen2_vl, save_qwen3_vl, save_qwen3_vl_moe
from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.settings import Generation, ModelSpec, Pruning

pytestmark = pytest.mark.vllm

BUILDERS: dict[str, Callable[..., Path]] = {
    "qwen2-vl": partial(save_qwen2_vl, rope_scaling=BLOCKS),
    "qwen2.5-vl": partial(save_qwen2_5_vl, rope_scaling=BLOCKS),
    "qwen3-vl": partial(save_qwen3_vl, head_dim=32, rope_scaling=INTERLEAVED),
    "qwen3-vl-moe": partial(save_qwen3_vl_moe, head_dim=32, rope_scaling=INTERLEAVED),
}

#: vLLM's second model runner runs the experts of a mixture by kernels that Triton's interpreter cannot run.
SECOND_RUNNER = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")

# A wide picture, a tall one, and one with more tokens than a chunk of the prompt.
SIZES = [(260, 120), (100, 300), (400, 380)]
QUESTIONS = ["What is shown here?", "Which colour is the circle?"]


@dataclass(frozen=True)
class Served:
    """A checkpoint that a server and the engine have loaded."""

    server: Any
    engine: Engine

    def ask(self, content: Sequence[Any], keep: float) -> Answer:
        """Return the engine's answer with the first stage alone."""
        pruning = Pruning(keep=keep, stages="first") if keep < 1 else Pruning(keep=1.0)
        return self.engine.chat([{"role": "user", "content": list(content)}], pruning, Generation(max_tokens=12))

    def ask_server(self, content: Sequence[Any], keep: float | list[float]) -> Any:
        message = {"role": "user", "content": list(content)}
        extra = {"mm_processor_kwargs": {"tops_keep": keep}}
        request = asking("", max_tokens=12, extra_body=extra) | {"messages": [message]}
        return self.server.client.chat.completions.create(**request)


@pytest.fixture(scope="module", params=[*BUILDERS, *(f"{name}, second runner" for name in SECOND_RUNNER)])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Start a server that prunes on request; the one of Qwen3-VL compiles its language model."""
    from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, environment, second_runner, serving

    kind, _, runner = request.param.partition(", ")
    folder, logs = tmp_path_factory.mktemp("qwen") / kind, tmp_path_factory.mktemp("logs")
    BUILDERS[kind](folder, **HEADS)
    options = ["--served-model-name", "mini", "--trust-request-mm-kwargs", *OPTIONS]
    # Compile again instead of using the cache of earlier servers.
    variables = environment(VLLM_CACHE_ROOT=str(logs / "cache"))
    if runner:
        variables |= second_runner(logs / "triton")
    elif kind == "qwen3-vl":
        options.remove("--enforce-eager")
    with serving([([*TOPS, "serve", str(folder), "--keep", "1.0", *options], variables)], logs) as (server,):
        assert ("Using V2 Model Runner" in (logs / "server0.log").read_text()) == bool(runner)
        yield Served(server, Engine.load(ModelSpec(model=str(folder), device="cpu")))


def assert_same(completion: Any, answer: Answer) -> None:
    # If an answer ends within a character, only one of the two shows the replacement character.
    assert completion.choices[0].message.content.rstrip("\ufffd").strip() == answer.text.rstrip("\ufffd").strip()


@pytest.mark.parametrize("keep", [0.4, 1.0])
@pytest.mark.parametrize("chosen", [[1], [2], [1, 0], [2, 2, 0, 1]])
def test_answers_are_those_of_the_engine(served: Served, picture: Picture, chosen: list[int], keep: float) -> None:
    images = [picture(*SIZES[number], seed) for seed, number in enumerate(chosen)]
    for question in QUESTIONS:
        text = {"type": "text", "text": question}
        answer = served.ask([*({"type": "image", "image": image} for image in images), text], keep)
        content = [*(picture_part(image) for image in images), text]
        first = served.ask_server(content, keep)
        hits = served.server.metric("vllm:prefix_cache_hits_total")
        again = served.ask_server(content, keep)
        assert_same(first, answer)
        assert_same(again, answer)
        # The cached tokens are full blocks of 32, without the last token.
        known = (first.usage.prompt_tokens - 1) // 32 * 32
        assert served.server.metric("vllm:prefix_cache_hits_total") - hits == known
        kept = sum(answer.usage.stages[0].visual_tokens)
        assert first.usage.prompt_tokens == answer.usage.prompt_tokens - answer.usage.visual_tokens + kept


async def test_requests_at_once_are_answered_as_alone(served: Served, picture: Picture) -> None:
    text = {"type": "text", "text": QUESTIONS[1]}
    asked = []
    for number in range(9):
        images = [picture(*SIZES[(number + step) % 3], 10 + number + step) for step in range(number % 3)]
        asked.append((images, (0.3, 0.7, 1.0)[number // 3]))
    completions = await asyncio.gather(
        *(asyncio.to_thread(served.ask_server, [*map(picture_part, images), text], keep) for images, keep in asked)
    )
    for (images, keep), completion in zip(asked, completions, strict=True):
        assert_same(completion, served.ask([*({"type": "image", "image": image} for image in images), text], keep))


def test_videos_are_pruned_as_by_the_engine(served: Served, picture: Picture) -> None:
    # The video is six tokens wide, more than its four seconds. Otherwise transformers and vLLM disagree on the position
    # of the text after a video in Qwen2.5-VL.
    frames = [as_jpeg(picture(168, 56, seed)) for seed in range(4)]
    text = {"type": "text", "text": QUESTIONS[0]}
    decoded = {"type": "video", "video": [Image.open(io.BytesIO(frame)) for frame in frames]}
    url = "data:video/jpeg;base64," + ",".join(base64.b64encode(frame).decode() for frame in frames)
    video = {"type": "video_url", "video_url": {"url": url}}
    image = picture(*SIZES[0])
    for keep in (1.0, 0.4, 0.1):
        answer = served.ask([decoded, text], keep)
        # The second time from vLLM's caches.
        for alone in (served.ask_server([video, text], keep), served.ask_server([video, text], keep)):
            assert alone.usage.prompt_tokens == answer.usage.input_tokens
            assert_same(alone, answer)
        answer = served.ask([{"type": "image", "image": image}, decoded, text], keep)
        beside = served.ask_server([picture_part(image), video, text], keep)
        assert beside.usage.prompt_tokens == answer.usage.input_tokens
        assert_same(beside, answer)
    # Budgets of their own: half of the picture, all of the video.
    whole = served.ask([{"type": "image", "image": image}, decoded, text], 1.0)
    tokens = whole.usage.stages[0].visual_tokens[0]
    own = served.ask_server([picture_part(image), video, text], [0.5, 1.0])
    assert own.usage.prompt_tokens == whole.usage.input_tokens - tokens + tokens // 2


@pytest.mark.parametrize(("kind", "method"), [("qwen2-vl", "visionzip"), ("qwen3-vl", "tops")])
def test_ranks_that_share_the_heads_choose_the_same_tokens(
    tmp_path: Path, picture: Picture, kind: str, method: str
) -> None:
    from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, environment, serving

    # The tower has two heads, one for each rank.
    folder = str(BUILDERS[kind](tmp_path / kind, **HEADS))
    engine = Engine.load(ModelSpec(model=folder, device="cpu"))
    pruning = for_vllm(Pruning.from_label(method, 0.4))
    command = [*TOPS, "serve", folder, "--method", method, "--keep", "0.4", "-tp", "2", "--served-model-name", "mini"]
    with serving([([*command, *OPTIONS], environment())], tmp_path) as (server,):
        for chosen in ([0], [1, 2]):
            images = [picture(*SIZES[number], number) for number in chosen]
            answer = engine.chat([user_message(QUESTIONS[0], *images)], pruning, Generation(max_tokens=12))
            request = asking(QUESTIONS[0], *map(as_url, images), max_tokens=12)
            assert_same(server.client.chat.completions.create(**request), answer)


def picture_part(image: Image.Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": as_url(image)}}


def as_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
