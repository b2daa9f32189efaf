"""Test LLaVA-OneVision and LLaVA-NeXT-Video: videos, several pictures, places of tokens and their signals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Picture
from tests.support.checkpoints import IMAGE_SIZE, PATCH_SIZE
from tests.support.checkpoints_video import SIGLIP_SIZE, save_next_video, save_onevision
from tests.support.clips import clip
from tests.support.slow_reference import greedy_tokens, keeps_and_positions
from tests.support.usage import token_counts
from tops_engine.conversation.messages import Message, read_conversation, user_message, video_message
from tops_engine.engine import Engine
from tops_engine.errors import TopsError
from tops_engine.families import Family, Prompt
from tops_engine.families.llava_next import LlavaNext
from tops_engine.methods import METHODS
from tops_engine.settings import Generation, ModelSpec, Pruning

Conversations = dict[str, list[Message]]
NUM_TOKENS = 12

VARIANTS: dict[str, tuple[Callable[..., Path], str, dict[str, Any], str]] = {
    "onevision": (save_onevision, "qwen2", {}, "sdpa"),
    "onevision-eager": (save_onevision, "qwen2", {}, "eager"),
    "next-video": (save_next_video, "llama", {}, "sdpa"),
    "next-video-max-eager": (save_next_video, "mistral", {"pool_mode": "max"}, "eager"),
}

CONVOLVED: dict[str, tuple[Callable[..., Path], str, dict[str, Any], str]] = {
    "next-video-conv-eager": (save_next_video, "llama", {"pool_mode": "conv"}, "eager"),
}


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Engine]:
    engines: dict[str, Engine] = {}

    def engine(name: str) -> Engine:
        if name not in engines:
            save, kind, options, attention = (VARIANTS | CONVOLVED)[name]
            folder = save(tmp_path_factory.mktemp(name), kind, **options)
            engines[name] = Engine.load(ModelSpec(model=str(folder), device="cpu", attention=attention))
        return engines[name]

    return engine


@pytest.fixture(params=VARIANTS)
def engine(request: pytest.FixtureRequest, load: Callable[[str], Engine]) -> Engine:
    return load(request.param)


@pytest.fixture(params=["onevision", "next-video"])
def family(request: pytest.FixtureRequest, load: Callable[[str], Engine]) -> LlavaNext:
    family = load(request.param).family
    assert isinstance(family, LlavaNext)
    return family


@pytest.fixture(scope="module")
def conversations(picture: Picture) -> Conversations:
    def frames(count: int, seed: int, size: tuple[int, int] = (80, 60)) -> dict[str, Any]:
        return {"type": "video", "video": [picture(*size, 10 * seed + index) for index in range(count)]}

    def asking(*parts: dict[str, Any]) -> list[Message]:
        return [{"role": "user", "content": [*parts, {"type": "text", "text": "What happens?"}]}]

    return {
        "one frame": asking(frames(1, 1)),
        "a video": asking(frames(5, 2)),
        "a file": [video_message("What?", clip(12), num_frames=4)],
        "two videos": asking(frames(3, 3), frames(3, 4, (50, 90))),
        "a picture and a video": asking({"type": "image", "image": picture(110, 70)}, frames(3, 5)),
        "two turns": [
            *asking(frames(2, 6)),
            {"role": "assistant", "content": "A dog"},
            *asking({"type": "image", "image": picture(60, 90, 1)}, {"type": "image", "image": picture(70, 70, 2)}),
        ],
        "no picture": [user_message("What?")],
    }


def prepare(family: Family, messages: list[Message]) -> Prompt:
    return family.prepare(read_conversation(messages))


def video(family: Family, frames: list[Image.Image]) -> Prompt:
    return prepare(family, [video_message("What?", frames)])


def generate(family: Family, messages: list[Message]) -> list[int]:
    """Return the answer of transformers' own generate."""
    prompt = prepare(family, messages)
    with torch.inference_mode():
        output = family.model.generate(
            input_ids=prompt.input_ids[None], **prompt.pixels, max_new_tokens=NUM_TOKENS, do_sample=False
        )
    return output[0, len(prompt.input_ids) :].tolist()


def test_unpruned_answers_are_those_of_generate_alone_and_in_a_batch(
    engine: Engine, conversations: Conversations
) -> None:
    expected = [generate(engine.family, messages) for messages in conversations.values()]
    generation = Generation(max_tokens=NUM_TOKENS)
    alone = [engine.chat(messages, Pruning(keep=1.0), generation) for messages in conversations.values()]
    together = engine.batch(list(conversations.values()), Pruning(keep=1.0), generation)
    assert [answer.token_ids for answer in alone] == expected
    assert [answer.token_ids for answer in together] == expected
    assert len({tuple(tokens) for tokens in expected}) == len(expected), "all answers are the same"


@keeps_and_positions
def test_pruned_answers_are_those_of_the_slow_reference(
    engine: Engine, conversations: Conversations, keep: float, positions: Any
) -> None:
    for messages in conversations.values():
        answer = engine.chat(messages, Pruning(keep=keep, positions=positions), Generation(max_tokens=6))
        expected = greedy_tokens(engine.family, messages, answer, positions, len(answer.token_ids))
        assert answer.token_ids == expected


@pytest.mark.parametrize("method", ["tops", "random"])
def test_a_pruned_batch_answers_as_each_conversation_alone(
    engine: Engine, conversations: Conversations, method: str
) -> None:
    pruning, generation = Pruning(method=method, keep=0.4), Generation(max_tokens=NUM_TOKENS)
    alone = [engine.chat(messages, pruning, generation) for messages in conversations.values()]
    together = engine.batch(list(conversations.values()), pruning, generation)
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert [token_counts(answer) for answer in together] == [token_counts(answer) for answer in alone]


def test_videos_of_different_lengths_in_one_question(engine: Engine, picture: Picture) -> None:
    """Compare with the features of each video alone; transformers does not support this case."""
    family = engine.family
    clips = [[picture(60, 60, 10 * count + index) for index in range(count)] for count in (4, 2)]
    parts = [{"type": "video", "video": frames} for frames in clips]
    messages: list[Message] = [{"role": "user", "content": [*parts, {"type": "text", "text": "Compare."}]}]
    with torch.inference_mode():
        together = family.project([prepare(family, messages)])
        alone = [family.project([video(family, frames)])[0] for frames in clips]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    answer = engine.chat(messages, Pruning(keep=0.5), Generation(max_tokens=4))
    assert answer.usage.video_frames == [4, 2]


def test_features_of_frames_are_those_of_transformers(engine: Engine, picture: Picture) -> None:
    family = engine.family
    prompt = video(family, [picture(90, 60, index) for index in range(4)])
    with torch.inference_mode():
        (features,) = family.project([prompt])
        output = family.model.model.get_video_features(prompt.pixels["pixel_values_videos"], return_dict=True)
    expected = torch.cat([part.reshape(-1, part.shape[-1]) for part in output.pooler_output])
    if len(expected) == 4 * 9:  # before transformers 5.19, OneVision's forward added the newline
        expected = torch.cat([expected, family.model.model.image_newline[None]])
    assert len(features) == prompt.spans[0].layout.num_tokens
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_frame_counts_of_tokens(load: Callable[[str], Engine], picture: Picture) -> None:
    """Expect a quarter of the patches: rounded up with a newline after the video, or rounded down without one."""
    frames = [picture(60, 60, index) for index in range(4)]
    onevision, next_video = (video(load(name).family, frames).spans[0].layout for name in ("onevision", "next-video"))
    assert (onevision.num_tokens, onevision.grids) == (4 * 3 * 3 + 1, ((3, 3),))
    assert (next_video.num_tokens, next_video.grids) == (4 * 2 * 2, ((2, 2),))
    assert onevision.frame is not None
    assert onevision.frame.tolist() == [frame for frame in range(4) for _ in range(9)] + [-1]
    assert (onevision.boxes[-1] == 0).all()


def test_token_counts_at_published_settings(tmp_path: Path, picture: Picture) -> None:
    family = Engine.load(
        ModelSpec(model=str(save_onevision(tmp_path, tile_size=384, grid=6, most_tiles=9)), device="cpu")
    ).family

    def counts(*sizes: tuple[int, int]) -> list[int]:
        prompt = prepare(family, [user_message("?", *(Image.new("RGB", size) for size in sizes))])
        return [span.layout.num_tokens for span in prompt.spans]

    assert counts((640, 480)) == [2929]
    assert counts((1920, 1080)) == [7269]
    assert counts((640, 480), (200, 900)) == [730, 730]
    assert video(family, [picture(40, 30)] * 3).spans[0].layout.num_tokens == 3 * 196 + 1


def gradient(size: tuple[int, int]) -> Image.Image:
    """Return a picture whose red grows from left to right and green from top to bottom."""
    width, height = size
    red = torch.linspace(0, 255, width).expand(height, width)
    green = torch.linspace(0, 255, height)[:, None].expand(height, width)
    pixels = torch.stack([red, green, torch.zeros(height, width)], dim=-1).round().byte()
    return Image.fromarray(pixels.numpy())


def patch_colours(family: LlavaNext, pixels: Tensor) -> Tensor:
    """Return the mean colour of each patch that the vision tower sees, 0 to 1: [tiles, patches, 3]."""
    processor = family.processor.image_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    pixels = pixels.reshape(-1, *pixels.shape[-3:]) * std + mean
    return F.avg_pool2d(pixels, PATCH_SIZE).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("size", [(56, 56), (200, 60), (60, 200), (70, 300), (57, 55)], ids=str)
def test_every_token_of_a_video_lies_where_its_pixels_come_from(family: LlavaNext, size: tuple[int, int]) -> None:
    prompt = video(family, [gradient(size)] * 2)
    layout = prompt.spans[0].layout
    colours = patch_colours(family, prompt.pixels["pixel_values_videos"])
    shows = layout.boxes[:, 2] > layout.boxes[:, 0]
    for channel in (0, 1):
        expected = layout.boxes[:, [channel, channel + 2]].mean(dim=1)
        (values,) = family.arrange(colours[..., channel, None], [prompt])
        assert (values[:, 0] - expected)[shows].abs().max() < 0.04


@pytest.mark.parametrize("sizes", [[(200, 190)], [(400, 300)], [(60, 45), (45, 60)], [(210, 210)]], ids=str)
def test_every_token_of_pictures_lies_where_its_pixels_come_from(
    load: Callable[[str], Engine], sizes: list[tuple[int, int]]
) -> None:
    """Include pictures whose tokens OneVision scales down, and several pictures, which it pads to squares."""
    family = load("onevision").family
    assert isinstance(family, LlavaNext)
    prompt = prepare(family, [user_message("?", *map(gradient, sizes))])
    pixels = prompt.pixels["pixel_values"].flatten(0, 1)
    colours = patch_colours(family, pixels)
    for channel in (0, 1):
        pictures = family.arrange(colours[..., channel, None], [prompt])
        for values, span in zip(pictures, prompt.spans, strict=True):
            boxes = span.layout.boxes
            # What is partly padding has not its own colour.
            whole = (boxes >= 0).all(dim=1) & (boxes <= 1).all(dim=1) & (boxes[:, 2] > boxes[:, 0])
            expected = boxes[:, [channel, channel + 2]].mean(dim=1)
            assert whole.sum() > 5
            assert (values[:, 0] - expected)[whole].abs().max() < 0.05


def test_several_pictures_are_seen_whole_and_one_in_tiles(load: Callable[[str], Engine], picture: Picture) -> None:
    family = load("onevision").family
    alone = prepare(family, [user_message("?", picture(140, 70))]).spans[0].layout
    together = [span.layout for span in prepare(family, [user_message("?", picture(140, 70), picture())]).spans]
    assert alone.grids == ((5, 5), (5, 10))
    assert [layout.grids for layout in together] == [((5, 5),), ((5, 5),)]
    assert [layout.num_tokens for layout in together] == [26, 26]


@pytest.mark.parametrize("name", ["onevision-eager", "next-video-max-eager", "next-video-conv-eager"])
def test_vision_attention_is_pooled_like_the_frames(load: Callable[[str], Engine], picture: Picture, name: str) -> None:
    family = load(name).family
    prompt = video(family, [picture(60, 60, index) for index in range(2)])
    with torch.inference_mode():
        ((tokens,),) = family.encode([prompt])
        tower = family.model.model.vision_tower
        attentions = tower(prompt.pixels["pixel_values_videos"][0], output_attentions=True).attentions
        if name == "onevision-eager":
            # The features are the output of the last layer. Mean over heads and over those who pay.
            received = attentions[-1].mean(dim=(1, 2)).view(2, 1, 5, 5)
            expected = F.interpolate(received, (3, 3), mode="bilinear")
            expected = torch.cat([expected.flatten(), torch.zeros(1)])
        else:
            # vision_feature_layer is -2 of 5 hidden states, the output of layer 2.
            received = attentions[2][:, :, 0, 1:].mean(dim=1).view(2, 1, 4, 4)
            pool = F.max_pool2d if name == "next-video-max-eager" else F.avg_pool2d
            expected = pool(received, 2).flatten()
    torch.testing.assert_close(tokens.vision_attention(), expected)


def test_what_is_known_of_tokens_has_one_row_a_token(family: LlavaNext, conversations: Conversations) -> None:
    prompts = [prepare(family, messages) for messages in conversations.values()]
    with torch.inference_mode():
        encoded = family.encode(prompts)
        for prompt, visuals in zip(prompts, encoded, strict=True):
            for span, tokens in zip(prompt.spans, visuals, strict=True):
                for signal in ("encoder_features", "vision_attention", "vision_keys", "last_layer_keys", "tiles"):
                    assert len(getattr(tokens, signal)()) == span.layout.num_tokens


def test_tokens_of_one_frame_have_one_number(family: LlavaNext, picture: Picture) -> None:
    prompt = video(family, [picture(60, 60, index) for index in range(3)])
    with torch.inference_mode():
        ((tokens,),) = family.encode([prompt])
        numbers = tokens.tiles()
    assert tokens.layout.frame is not None
    assert numbers.tolist() == (tokens.layout.frame + 1).tolist()


def test_tokens_of_scaled_tiles_have_the_number_of_the_tile_they_show(
    load: Callable[[str], Engine], picture: Picture
) -> None:
    family = load("onevision").family
    prompt = prepare(family, [user_message("?", picture(210, 210))])
    with torch.inference_mode():
        ((tokens,),) = family.encode([prompt])
        numbers = tokens.tiles()
    boxes, tiles = tokens.layout.boxes, tokens.layout.view == 1
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert tokens.layout.grids[1] == (7, 7), "15 x 15 patches are more than two tiles have"
    for token in range(tokens.layout.num_tokens):
        if (boxes[token] == 0).all():
            assert numbers[token] == 0
        elif tiles[token]:
            column, row = (centres[token] * 3).long().tolist()
            assert numbers[token] == 2 + 3 * row + column
        else:
            assert numbers[token] == 1


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"resize"}))
def test_every_method_runs_or_says_what_it_misses(engine: Engine, conversations: Conversations, method: str) -> None:
    messages, pruning = conversations["a picture and a video"], Pruning(method=method, keep=0.9)
    if "clip" in METHODS[method].model_fields:  # these checkpoints bring no CLIP along
        with pytest.raises(TopsError, match="CLIP"):
            engine.chat(messages, pruning, Generation(max_tokens=2))
    else:
        assert engine.chat(messages, pruning, Generation(max_tokens=2)).usage.completion_tokens >= 1


@pytest.mark.parametrize(
    "pruning", [Pruning(method="none"), Pruning(method="random", keep=0.3)], ids=["none", "random"]
)
@pytest.mark.parametrize(
    "name", ["onevision", "next-video-conv-eager", pytest.param("next-video", marks=pytest.mark.full)]
)
def test_flops_are_those_torch_counts(
    load: Callable[[str], Engine], conversations: Conversations, name: str, pruning: Pruning
) -> None:
    for messages in conversations.values():
        engine = load(name)
        engine.unload()  # and forget what was read before
        _ = engine.family
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            answer = engine.chat(messages, pruning, Generation(max_tokens=3))
        assert answer.flops.total == counter.get_total_flops()


def test_an_answer_says_how_many_frames_and_draws_them(engine: Engine, conversations: Conversations) -> None:
    answer = engine.chat(conversations["a picture and a video"], Pruning(keep=0.5), Generation(max_tokens=1))
    assert answer.usage.video_frames == [3]
    assert answer.usage.layer_average == pytest.approx(0.5 * answer.usage.visual_tokens, abs=1)
    picture_rows = sum(len(layout.grids) for layout in answer.token_map.layouts if layout.frame is None)
    assert len(answer.token_map._rows()) == picture_rows + 3
    assert answer.token_map.draw().width > 0


def test_a_number_to_keep_is_that_of_the_whole_video(engine: Engine, picture: Picture) -> None:
    usage = engine.chat(
        [video_message("What?", [picture(60, 60, index) for index in range(8)])],
        Pruning(keep=8),
        Generation(max_tokens=1),
    ).usage
    assert usage.layer_average == pytest.approx(8, abs=0.5)


@pytest.mark.parametrize("token", ["<image>", "<video>"])
def test_placeholders_in_the_text_stay_text(engine: Engine, token: str) -> None:
    answer = engine.chat([user_message(f"What is {token}?")], generation=Generation(max_tokens=4))
    spelled = engine.chat([user_message(f"What is {token.replace('<', '< ')}?")], generation=Generation(max_tokens=4))
    assert answer.text == spelled.text


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (1, 40), (40, 1)], ids=str)
def test_tiny_and_thin_frames_are_seen(engine: Engine, picture: Picture, size: tuple[int, int]) -> None:
    answer = engine.chat([video_message("What?", [picture(*size)] * 2)], Pruning(keep=0.5), Generation(max_tokens=1))
    assert answer.usage.video_frames == [2]


def test_frames_pooled_by_a_convolution(load: Callable[[str], Engine], conversations: Conversations) -> None:
    engine, generation = load("next-video-conv-eager"), Generation(max_tokens=NUM_TOKENS)
    family = engine.family
    for messages in conversations.values():
        expected = generate(family, messages)
        assert engine.chat(messages, Pruning(keep=1.0), generation).token_ids == expected
        answer = engine.chat(messages, Pruning(keep=0.4, positions="original"), generation)
        assert answer.token_ids == greedy_tokens(family, messages, answer, "original", len(answer.token_ids))
        with torch.inference_mode():
            (encoded,) = family.encode([prepare(family, messages)])
            for tokens in encoded:
                shown = tokens.layout.shows_picture
                projected = tokens.project(tokens.encoder_features())
                torch.testing.assert_close(projected[shown], tokens.features[shown])


def test_sides_are_what_the_checkpoints_say(load: Callable[[str], Engine], picture: Picture) -> None:
    for name, side in {"onevision": SIGLIP_SIZE, "next-video": IMAGE_SIZE}.items():
        pixels = video(load(name).family, [picture(90, 60)] * 2).pixels["pixel_values_videos"]
        assert pixels.shape == (1, 2, 3, side, side)
