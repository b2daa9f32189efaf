"""Test GLM-4V: places of tokens, frames with their times, bounds of pixels, signals of the tower, and FLOPs."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.glm4v.image_processing_pil_glm4v import smart_resize
from transformers.models.glm4v.modeling_glm4v import apply_rotary_pos_emb_vision

from tests.conftest import Picture
from tests.support.checkpoints_glm import KINDS, save_glm4v
from tests.support.slow_reference import greedy_tokens
from tops_engine.conversation.messages import Message, read_conversation, user_message, video_message
from tops_engine.engine import Engine
from tops_engine.families import Prompt
from tops_engine.families.glm4v import Glm4V
from tops_engine.families.parts.vision_signals import captured_calls
from tops_engine.settings import Generation, ModelSpec, Pruning

NUM_TOKENS = 8


Load = Callable[..., Engine]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Return a function that loads one of the kinds, each once for the same options."""

    @functools.cache
    def folder(kind: str) -> Path:
        return save_glm4v(tmp_path_factory.mktemp(kind), kind)

    @functools.cache
    def loaded(kind: str, **options: Any) -> Engine:
        return Engine.load(ModelSpec(model=str(folder(kind)), device="cpu", **options))

    return loaded


@pytest.fixture(scope="module", params=KINDS)
def engine(request: pytest.FixtureRequest, load: Load) -> Engine:
    return load(request.param)


def prepare(engine: Engine, *pictures: Image.Image) -> Prompt:
    return engine.family.prepare(read_conversation([user_message("What is this?", *pictures)]))


def generate(engine: Engine, messages: list[Message]) -> list[int]:
    prompt = engine.family.prepare(read_conversation(messages))
    with torch.inference_mode():
        output = engine.family.model.generate(
            input_ids=prompt.input_ids[None], **prompt.pixels, max_new_tokens=NUM_TOKENS, do_sample=False
        )
    return output[0, len(prompt.input_ids) :].tolist()


def test_frames_of_a_video_stand_before_their_times(engine: Engine, picture: Picture) -> None:
    family, generation = engine.family, Generation(max_tokens=NUM_TOKENS)
    assert isinstance(family, Glm4V)
    frames = [picture(90, 60, seed) for seed in range(5)]
    messages: list[Message] = [video_message("What happens?", frames, fps=0.8)]
    prompt = family.prepare(read_conversation(messages))
    text = family.tokenizer.decode(prompt.input_ids)
    tenths = family.processor.tells_tenths
    times = ["0.0 seconds", "2.5 seconds", "5.0 seconds"] if tenths else ["0", "2", "5"]
    assert [piece.split("<")[0] for piece in text.split("<|end_of_image|>")[1:]] == times
    assert prompt.spans[0].layout.frame is not None
    assert set(prompt.spans[0].layout.frame.tolist()) == {0, 2, 4}
    assert engine.chat(messages, Pruning(keep=1.0), generation).token_ids == generate(engine, messages)
    answer = engine.chat(messages, Pruning(keep=0.4), generation)
    assert answer.token_ids == greedy_tokens(family, messages, answer, "original", len(answer.token_ids))


def test_a_picture_beside_a_video_keeps_its_tokens(load: Load, picture: Picture) -> None:
    engine = load("glm4v")
    still: Message = user_message("What?", picture(110, 70))
    film: Message = video_message("What?", [picture(90, 60, seed) for seed in range(4)], fps=1.0)
    both = engine.family.prepare(read_conversation([film, {"role": "assistant", "content": "A dog"}, still]))
    alone = [engine.family.prepare(read_conversation([message])) for message in (film, still)]
    with torch.inference_mode():
        (together,) = engine.family.encode([both])
        singles = [image for prompt in alone for image in engine.family.encode([prompt])[0]]
        for joined, single in zip(together, singles, strict=True):
            torch.testing.assert_close(joined.features, single.features, atol=1e-5, rtol=1e-4)
    pruning, generation = Pruning(keep=0.5), Generation(max_tokens=NUM_TOKENS)
    answers = engine.batch([[still], [film]], pruning, generation)
    assert [answer.token_ids for answer in answers] == [
        engine.chat([message], pruning, generation).token_ids for message in (still, film)
    ]


@pytest.mark.parametrize("size", [(56, 56), (200, 130), (300, 90), (57, 200)], ids=str)
def test_every_token_lies_where_its_pixels_come_from(load: Load, size: tuple[int, int]) -> None:
    engine = load("glm4v")
    width, height = size
    red = torch.linspace(0, 255, width).expand(height, width)
    green = torch.linspace(0, 255, height)[:, None].expand(height, width)
    pixels = torch.stack([red, green, torch.zeros(height, width)], dim=-1).round().byte()
    prompt = prepare(engine, Image.fromarray(pixels.numpy()))
    layout, processor = prompt.spans[0].layout, engine.family.processor.image_processor
    values = prompt.pixels["pixel_values"].view(layout.num_tokens, 4, 3, -1).mean(dim=(1, 3))
    colours = values * torch.tensor(processor.image_std) + torch.tensor(processor.image_mean)
    for channel in (0, 1):
        assert (colours[:, channel] - layout.boxes[:, [channel, channel + 2]].mean(dim=1)).abs().max() < 0.02


def test_frames_are_scaled_as_transformers_scales_them(load: Load, picture: Picture) -> None:
    family = load("glm4v").family
    assert isinstance(family, Glm4V)
    least, most = family.processor.video_bounds
    for num_frames, (width, height) in [(4, (90, 60)), (16, (300, 200)), (7, (400, 90))]:
        frames = [picture(width, height)] * num_frames
        conversation = read_conversation([video_message("What?", frames, fps=1.0)])
        (grid,) = family.prepare(conversation).pixels["video_grid_thw"].tolist()
        even = num_frames + num_frames % 2
        rows, columns = (side // 14 for side in smart_resize(even, height, width, 2, 28, least, most))
        assert grid == [even // 2, rows, columns]


@pytest.mark.parametrize(
    ("bounds", "tokens"),
    [({}, 24), ({"max_pixels": 12 * 28 * 28}, 8), ({"min_pixels": 40 * 28 * 28}, 40), ({"max_pixels": 1}, 1)],
)
def test_the_bounds_of_pixels_are_those_of_a_picture(
    load: Load, picture: Picture, bounds: dict[str, int], tokens: int
) -> None:
    engine = load("glm4v", **bounds)
    assert prepare(engine, picture(160, 100)).spans[0].layout.num_tokens == tokens


def test_signals_are_those_of_the_tower(load: Load, picture: Picture) -> None:
    family: Any = load("glm4v").family
    prompt = family.prepare(read_conversation([user_message("What?", picture(110, 70), picture(60, 90))]))
    attention, grids = family.visual.blocks[-1].attn, prompt.pixels["image_grid_thw"]
    with torch.inference_mode():
        (images,) = family.encode([prompt])
        with captured_calls(attention) as (call,):
            output = family.visual(prompt.pixels["pixel_values"], grids)
        torch.testing.assert_close(torch.cat([image.encoder_features() for image in images]), output.last_hidden_state)
        projected = attention.qkv(call.input).view(len(call.input), 3, attention.num_heads, -1)
        queries, keys = apply_rotary_pos_emb_vision(*projected.unbind(1)[:2], *call.keywords["position_embeddings"])
        begin = 0
        for image, count in zip(images, grids.prod(dim=1).tolist(), strict=True):
            own = slice(begin, begin + count)
            weights = (torch.einsum("qhc,khc->hqk", queries[own], keys[own]) * attention.scaling).softmax(dim=-1)
            expected = weights.mean(dim=(0, 1)).view(-1, 4).mean(dim=1)
            torch.testing.assert_close(image.vision_attention(), expected, atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(image.project(image.encoder_features()), image.features)
            begin += count


@pytest.mark.parametrize("keep", [pytest.param(1.0, marks=pytest.mark.full), 0.3])
def test_flops_are_those_torch_counts(engine: Engine, picture: Picture, keep: float) -> None:
    if engine.family.decoder.shape.router_size:
        # The counter does not know the grouped products that run the experts otherwise.
        engine.family.model.set_experts_implementation("eager")
    messages = [user_message("Compare.", picture(300, 130, 1), picture(130, 230, 2))]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = engine.chat(messages, Pruning(method="random", keep=keep), Generation(max_tokens=3))
    assert answer.usage.completion_tokens == 3
    assert answer.flops.total == counter.get_total_flops()
