"""Test videos in Qwen-VL models: patches of two frames, times as positions or as text."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Picture
from tests.support.checkpoints_qwen import save_qwen2_5_vl, save_qwen2_vl, save_qwen3_vl
from tests.support.slow_reference import greedy_tokens, model_text_inputs
from tests.support.usage import token_counts
from tops_engine.conversation.messages import Message, read_conversation, user_message, video_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidVideo
from tops_engine.families import Family, Prompt
from tops_engine.settings import Generation, ModelSpec, Pruning

SAVE = {"qwen2-vl": save_qwen2_vl, "qwen2.5-vl": save_qwen2_5_vl, "qwen3-vl": save_qwen3_vl}


@pytest.fixture(scope="module", params=SAVE, ids=str)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = SAVE[request.param](tmp_path_factory.mktemp(request.param))
    return Engine.load(ModelSpec(model=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def conversations(picture: Picture) -> dict[str, list[Message]]:
    def video(count: int, size: tuple[int, int], seed: int) -> list[Image.Image]:
        return [picture(*size, seed + index) for index in range(count)]

    video_part = {"type": "video", "video": video(5, (90, 60), 40), "fps": 2.0}
    return {
        "one video": [video_message("What happens?", video(6, (130, 90), 10), fps=3.0)],
        "one frame": [video_message("What?", video(1, (100, 60), 20))],
        "long and small": [video_message("What happens?", video(14, (60, 60), 30), fps=0.5)],
        "video, pictures, video": [
            user_message("Hello", picture(60, 130, 1)),
            {"role": "assistant", "content": "A dog"},
            {
                "role": "user",
                "content": [
                    video_part,
                    {"type": "image", "image": picture(90, 60, 2)},
                    {"type": "text", "text": "and"},
                    {"type": "video", "video": video(4, (60, 130), 50)},
                    {"type": "text", "text": "?"},
                ],
            },
        ],
        "picture": [user_message("What?", picture(200, 90, 3))],
    }


def prepare(family: Family, messages: list[Message]) -> Prompt:
    return family.prepare(read_conversation(messages))


def generate(engine: Engine, messages: list[Message]) -> list[int]:
    prompt = prepare(engine.family, messages)
    with torch.inference_mode():
        output = engine.family.model.generate(
            input_ids=prompt.input_ids[None], **prompt.pixels, max_new_tokens=12, do_sample=False
        )
    return output[0, len(prompt.input_ids) :].tolist()


def test_unpruned_answers_are_those_of_generate(engine: Engine, conversations: dict[str, list[Message]]) -> None:
    expected = [generate(engine, messages) for messages in conversations.values()]
    answers = engine.batch(list(conversations.values()), Pruning(keep=1.0), Generation(max_tokens=12))
    assert [answer.token_ids for answer in answers] == expected
    for messages, tokens in zip(conversations.values(), expected, strict=True):
        assert engine.chat(messages, Pruning(keep=1.0), Generation(max_tokens=12)).token_ids == tokens


@pytest.mark.parametrize("method", ["tops", "random"])
def test_pruned_answers_are_those_of_the_slow_reference(
    engine: Engine, conversations: dict[str, list[Message]], method: str
) -> None:
    pruning, generation = Pruning(method=method, keep=0.3), Generation(max_tokens=8)
    together = engine.batch(list(conversations.values()), pruning, generation)
    for messages, answer in zip(conversations.values(), together, strict=True):
        expected = greedy_tokens(engine.family, messages, answer, "original", len(answer.token_ids))
        assert answer.token_ids == expected
        assert token_counts(engine.chat(messages, pruning, generation)) == token_counts(answer)


def test_spans_hold_each_visual_in_the_order_of_the_prompt(
    engine: Engine, conversations: dict[str, list[Message]]
) -> None:
    family = engine.family
    prompt = prepare(family, conversations["video, pictures, video"])
    assert [span.layout.frame is None for span in prompt.spans] == [True, False, True, False]
    assert [visual.size for visual in prompt.visuals] == [(60, 130), (90, 60), (90, 60), (60, 130)]
    config = family.model.config
    for span in prompt.spans:
        token = config.image_token_id if span.layout.frame is None else config.video_token_id
        assert (prompt.input_ids[span.positions] == token).all()
    with torch.inference_mode():
        (images,) = family.encode([prompt])
        alone = [
            *family.model.model.get_image_features(
                prompt.pixels["pixel_values"], prompt.pixels["image_grid_thw"], return_dict=True
            ).pooler_output,
            *family.model.model.get_video_features(
                prompt.pixels["pixel_values_videos"], prompt.pixels["video_grid_thw"], return_dict=True
            ).pooler_output,
        ]
    for tokens, expected in zip(images, (alone[0], alone[2], alone[1], alone[3]), strict=True):
        torch.testing.assert_close(tokens.features, expected, atol=1e-4, rtol=1e-4)
    # Five frames in three moments.
    assert prompt.spans[1].layout.frame is not None
    assert sorted(set(prompt.spans[1].layout.frame.tolist())) == [0, 2, 4]
    assert len(set(images[1].tiles().tolist())) == 3


def test_a_patch_holds_two_frames_the_last_one_twice_if_it_is_odd(engine: Engine) -> None:
    """Use grey frames: a patch has the first frame's value, then the second's, in each channel."""
    greys = [10, 60, 110, 160, 210]
    frames = [Image.new("RGB", (64, 64), (grey, grey, grey)) for grey in greys]
    family: Any = engine.family
    prompt = prepare(family, [video_message("?", frames)])
    processor = family.processor.image_processor
    times, rows, columns = prompt.pixels["video_grid_thw"][0].tolist()
    assert times == 3
    values = prompt.pixels["pixel_values_videos"].view(times, rows * columns, 3, 2, -1)
    mean, std = (torch.tensor(x)[:, None, None] for x in (processor.image_mean, processor.image_std))
    expected = torch.tensor([[10, 60], [110, 160], [210, 210]])[:, None, None, :, None] / 255
    assert (values * std + mean - expected).abs().max() < 1e-3


def test_positions_and_times(engine: Engine, picture: Picture) -> None:
    """Use frames 1.5 s apart: the second pair of frames begins after 3 s."""
    family: Any = engine.family
    frames = [picture(64, 64, seed) for seed in range(4)]
    prompt = prepare(family, [video_message("What happens?", frames, fps=1 / 1.5)])
    assert torch.equal(prompt.position_ids, model_text_inputs(family, prompt).positions[:, 0])
    span = prompt.spans[0]
    half = len(span.positions) // 2
    first, second = prompt.position_ids[0, span.positions[0]], prompt.position_ids[0, span.positions[half]]
    text = family.tokenizer.decode(prompt.input_ids)
    if family.model.config.model_type == "qwen3_vl":
        # Moments are told in text: the middle of frames 1 and 2, and of 3 and 4.
        assert "<0.8 seconds><|vision_start|><|video_pad|>" in text
        assert "<|video_pad|><|vision_end|><3.8 seconds><|vision_start|>" in text
        assert second > first + 8
    else:
        assert "seconds" not in text
        # Qwen2.5-VL counts two a second, Qwen2-VL one a moment.
        assert second - first == (6 if family.model.config.model_type == "qwen2_5_vl" else 1)


def test_flops_are_those_torch_counts(engine: Engine, conversations: dict[str, list[Message]]) -> None:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = engine.chat(
            conversations["video, pictures, video"], Pruning(method="random", keep=0.4), Generation(max_tokens=2)
        )
    assert answer.flops.total == counter.get_total_flops()


def test_the_token_map_has_a_row_for_each_moment(engine: Engine, conversations: dict[str, list[Message]]) -> None:
    answer = engine.chat(conversations["one video"], Pruning(keep=0.3), Generation(max_tokens=1))
    assert answer.usage.video_frames == [6]
    assert answer.token_map.mask(0, 0, frame=4).size == (130, 90)
    assert answer.token_map.draw().height > 3 * 200


def test_frames_as_thin_as_threads_are_refused(engine: Engine, picture: Picture) -> None:
    with pytest.raises(InvalidVideo, match="500 x 2"):
        engine.chat([video_message("?", [picture(500, 2, seed) for seed in range(3)])])


@pytest.mark.parametrize("where", ["nowhere", "video_preprocessor_config", "processor_config"])
def test_the_size_of_frames_is_the_checkpoints_or_the_authors(tmp_path: Path, where: str) -> None:
    folder = save_qwen2_5_vl(tmp_path)
    size = {"size": {"shortest_edge": 28 * 28 * 6, "longest_edge": 28 * 28 * 9}}
    (folder / "video_preprocessor_config.json").unlink()
    if where == "video_preprocessor_config":
        (folder / "video_preprocessor_config.json").write_text(json.dumps(size))
    if where == "processor_config":
        (folder / "processor_config.json").write_text(json.dumps({"video_processor": size}))
    family = Engine.load(ModelSpec(model=str(folder), device="cpu")).family
    least, most = (6, 9) if where != "nowhere" else (128, 768)
    for side, bound in ((20, least), (2000, most)):
        prompt = prepare(family, [video_message("?", [Image.new("RGB", (side, side))] * 2)])
        assert prompt.spans[0].layout.num_tokens == pytest.approx(bound, rel=0.5)
        assert least <= prompt.spans[0].layout.num_tokens <= most
