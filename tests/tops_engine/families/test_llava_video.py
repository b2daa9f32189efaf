"""Test LLaVA-Video in the layout of the original code: pooling, newlines and prompt, on LLaVA-OneVision's modules."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Picture
from tests.support.checkpoints_video import save_llava_video
from tests.support.slow_reference import greedy_tokens
from tops_engine.conversation.messages import Message, read_conversation, user_message, video_message
from tops_engine.engine import Engine
from tops_engine.errors import UnsupportedModel
from tops_engine.families import FAMILIES, Family, Prompt
from tops_engine.methods import METHODS
from tops_engine.settings import Generation, ModelSpec, Pruning
from tops_engine.supported_models import applies

VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "as evaluated": {"mm_spatial_pool_mode": "average", "add_time_instruction": False},
    "max, by frames": {"mm_spatial_pool_mode": "max", "mm_newline_position": "frame"},
    "like OneVision": {"mm_newline_position": "one_token", "add_time_instruction": False},
    "no newlines": {"mm_newline_position": "no_token"},
}
SIDE = 5
Load = Callable[[str], Engine]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    engines: dict[str, Engine] = {}

    def engine(name: str) -> Engine:
        if name not in engines:
            folder = save_llava_video(tmp_path_factory.mktemp("llava-video"), **VARIANTS[name])
            engines[name] = Engine.load(ModelSpec(model=str(folder), device="cpu"))
        return engines[name]

    return engine


@pytest.fixture
def messages(picture: Picture) -> list[Message]:
    return [video_message("What happens?", [picture(80, 60, index) for index in range(3)], fps=4)]


def prepare(family: Family, messages: list[Message]) -> Prompt:
    return family.prepare(read_conversation(messages))


def plain_features(family: Family, frames: Tensor, name: str) -> Tensor:
    """Compute the original code's features of frames [f, 3, height, width], written out."""
    options = VARIANTS[name]
    mode, newline_at = options.get("mm_spatial_pool_mode", "bilinear"), options.get("mm_newline_position", "grid")
    model, newline = family.model.model, family.model.model.image_newline
    rows = model.multi_modal_projector(model.vision_tower(frames, output_hidden_states=True).hidden_states[-1])
    maps = rows.view(len(frames), SIDE, SIDE, -1).permute(0, 3, 1, 2)
    if mode == "bilinear":
        maps = F.interpolate(maps, (math.ceil(SIDE / 2),) * 2, mode="bilinear")
    else:
        maps = F.avg_pool2d(maps, 2) if mode == "average" else F.max_pool2d(maps, 2)
    tokens = []
    for frame in maps.permute(0, 2, 3, 1):
        for row in frame:
            tokens += [*row, *([newline] if newline_at == "grid" else [])]
        tokens += [newline] if newline_at == "frame" else []
    tokens += [newline] if newline_at == "one_token" else []
    return torch.stack(tokens)


def plain_embeds(family: Family, prompt: Prompt, name: str) -> Tensor:
    embeds = family.decoder.embed(prompt.input_ids[None]).clone()
    embeds[0, prompt.spans[0].positions] = plain_features(family, prompt.pixels["pixel_values_videos"][0], name)
    return embeds


@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_unpruned_answers_are_those_of_generate_on_the_originals_features(
    load: Load, messages: list[Message], name: str
) -> None:
    engine = load(name)
    prompt = prepare(engine.family, messages)
    embeds = plain_embeds(engine.family, prompt, name)
    expected = engine.family.model.generate(inputs_embeds=embeds, max_new_tokens=12, do_sample=False)[0].tolist()
    assert engine.chat(messages, Pruning(keep=1.0), Generation(max_tokens=12)).token_ids == expected
    if name == "like OneVision":
        output = engine.family.model.generate(
            input_ids=prompt.input_ids[None], **prompt.pixels, max_new_tokens=12, do_sample=False
        )
        assert output[0, len(prompt.input_ids) :].tolist() == expected


@pytest.mark.parametrize("positions", ["contiguous", "original"])
@pytest.mark.parametrize("name", ["as published", "as evaluated"])
@torch.inference_mode()
def test_pruned_answers_are_those_of_the_slow_reference(
    load: Load, messages: list[Message], name: str, positions: Any
) -> None:
    family = load(name).family
    answer = load(name).chat(messages, Pruning(keep=0.4, positions=positions), Generation(max_tokens=6))
    embeds = plain_embeds(family, prepare(family, messages), name)
    expected = greedy_tokens(family, messages, answer, positions, len(answer.token_ids), embeds)
    assert answer.token_ids == expected


def test_pictures_are_those_of_onevision(load: Load, picture: Picture) -> None:
    engine = load("as published")
    for pictures in [(picture(150, 90),), (picture(200, 200, 1),), (picture(60, 60), picture(60, 90))]:
        messages: list[Message] = [user_message("What?", *pictures)]
        prompt = prepare(engine.family, messages)
        with torch.inference_mode():
            output = engine.family.model.generate(
                input_ids=prompt.input_ids[None], **prompt.pixels, max_new_tokens=10, do_sample=False
            )
        answer = engine.chat(messages, Pruning(keep=1.0), Generation(max_tokens=10))
        assert answer.token_ids == output[0, len(prompt.input_ids) :].tolist()


def test_a_batch_answers_as_each_conversation_alone(load: Load, messages: list[Message], picture: Picture) -> None:
    engine, generation = load("as published"), Generation(max_tokens=8)
    conversations: list[list[Message]] = [
        messages,
        [user_message("Hello")],
        [user_message("What?", picture(90, 90))],
        [video_message("What?", [picture(60, 60)])],
    ]
    for pruning in (Pruning(keep=1.0), Pruning(keep=0.4)):
        together = engine.batch(conversations, pruning, generation)
        alone = [engine.chat(conversation, pruning, generation) for conversation in conversations]
        assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


@pytest.mark.parametrize(("name", "tokens"), [("as published", 9 + 3), ("as evaluated", 4 + 2), ("no newlines", 9)])
def test_tokens_a_frame(load: Load, messages: list[Message], name: str, tokens: int) -> None:
    layout = prepare(load(name).family, messages).spans[0].layout
    assert layout.num_tokens == 3 * tokens
    assert layout.frame is not None
    newline = (layout.boxes == 0).all(dim=1)
    assert torch.equal(layout.frame == -1, newline)
    assert (~newline).sum() == 3 * layout.grids[0][0] * layout.grids[0][1]


def test_the_prompt_tells_the_times_of_the_frames(load: Load, messages: list[Message]) -> None:
    prompts = [prepare(load(name).family, messages) for name in ("as published", "as evaluated")]
    token = load("as published").family.video_token
    texts = [_text(load, prompt) for prompt in prompts]
    with_times, without = (text.replace(f"{token}", "") for text in texts)
    assert with_times == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "\nThe video lasts for 0.75 seconds, and 3 frames are uniformly sampled from it. "
        "These frames are located at 0.00s,0.25s,0.50s.Please answer the following questions related to this video."
        "\nWhat happens?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "uniformly sampled" not in without


def _text(load: Load, prompt: Prompt) -> str:
    return str(load("as published").family.tokenizer.decode(prompt.input_ids.tolist()))


APPLICABLE = [name for name, method in METHODS.items() if applies(method, FAMILIES["llava_qwen"]) and name != "resize"]


@pytest.mark.parametrize("method", APPLICABLE)
def test_every_method_that_needs_no_clip_runs(load: Load, messages: list[Message], method: str) -> None:
    answer = load("as published").chat(messages, Pruning(method=method, keep=0.9), Generation(max_tokens=2))
    assert answer.usage.video_frames == [3]


def test_flops_are_those_torch_counts(load: Load, messages: list[Message]) -> None:
    engine = load("as evaluated")
    engine.unload()
    _ = engine.family
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = engine.chat(messages, Pruning(method="random", keep=0.4), Generation(max_tokens=3))
    assert answer.flops.total == counter.get_total_flops()


@pytest.mark.parametrize(
    ("original", "named"),
    [
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio='pad'"),
        ({"image_grid_pinpoints": "(1x1),...,(6x6)"}, "image_grid_pinpoints='(1x1)"),
        ({"mm_newline_position": "corner"}, "mm_newline_position='corner'"),
        ({"mm_spatial_pool_mode": "conv"}, "mm_spatial_pool_mode='conv'"),
        ({"add_faster_video": True}, "add_faster_video=True"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, original: dict[str, Any], named: str) -> None:
    folder = save_llava_video(tmp_path, **original)
    with pytest.raises(UnsupportedModel) as error:
        Engine.load(ModelSpec(model=str(folder), device="cpu"))
    assert named in str(error.value)
