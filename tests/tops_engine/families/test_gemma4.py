"""Test Gemma 4: its mask, layers that read the keys and values of others, inputs by layer, and the pooled grid."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Picture
from tests.support.checkpoints_gemma4 import BLOCK, MOST_TOKENS, PATCH_SIZE, save_gemma4
from tests.support.slow_reference import greedy_tokens
from tests.support.tape import Tape
from tops_engine.conversation.messages import Message, read_conversation, user_message, video_message
from tops_engine.device.clock import Clock
from tops_engine.engine import Engine
from tops_engine.errors import InvalidImage, UnsupportedModel
from tops_engine.families import Family, Prompt
from tops_engine.families.gemma4 import Gemma4Decoder
from tops_engine.generation.batch_state import EmbeddedPrompt
from tops_engine.generation.decode import Decoding
from tops_engine.generation.planning import plan_groups
from tops_engine.generation.prefill import Prefill
from tops_engine.generation.static import StepPool
from tops_engine.settings import Generation, ModelSpec, Pruning

NUM_TOKENS = 8


Load = Callable[..., Engine]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Return a function that loads one of the sizes, each once for the same options."""

    @functools.cache
    def folder(kind: str) -> Path:
        return save_gemma4(tmp_path_factory.mktemp(kind), kind)

    @functools.cache
    def loaded(kind: str, **options: Any) -> Engine:
        return Engine.load(ModelSpec(model=str(folder(kind)), device="cpu", **options))

    return loaded


@pytest.fixture(scope="module", params=["e2b", "31b", pytest.param("26b-a4b", marks=pytest.mark.full)])
def engine(request: pytest.FixtureRequest, load: Load) -> Engine:
    return load(request.param)


@pytest.fixture
def small(load: Load) -> Engine:
    """Load one whose last four layers read the keys and values of layers 2 and 3."""
    return load("e2b")


def prepare(family: Family, *pictures: Image.Image) -> Prompt:
    return family.prepare(read_conversation([user_message("What is this?", *pictures)]))


def generate(engine: Engine, messages: Sequence[Message]) -> list[int]:
    prompt = engine.family.prepare(read_conversation(messages))
    with torch.inference_mode():
        output = engine.family.model.generate(
            input_ids=prompt.input_ids[None], **prompt.pixels, max_new_tokens=NUM_TOKENS, do_sample=False
        )
    return output[0, len(prompt.input_ids) :].tolist()


def test_answers_are_those_of_generate_and_pruned_those_of_the_reference(engine: Engine, picture: Picture) -> None:
    messages = [user_message("Compare.", picture(60, 50, 1), picture(40, 90, 2))]
    generation = Generation(max_tokens=NUM_TOKENS)
    assert engine.chat(messages, Pruning(keep=1.0), generation).token_ids == generate(engine, messages)
    answer = engine.chat(messages, Pruning(keep=0.4), generation)
    positions = answer.pruning["positions"]
    assert answer.token_ids == greedy_tokens(engine.family, messages, answer, positions, len(answer.token_ids))


def test_frames_of_a_video_are_pictures_with_their_times(engine: Engine, picture: Picture) -> None:
    frames = [picture(60, 40, seed) for seed in range(3)]
    messages: list[Message] = [video_message("What happens?", frames, fps=0.5)]
    family, generation = engine.family, Generation(max_tokens=NUM_TOKENS)
    prompt = family.prepare(read_conversation(messages))
    text = family.tokenizer.decode(prompt.input_ids)
    assert [time in text for time in ("00:00 <|image>", " 00:02 <|image>", " 00:04 <|image>")] == [True] * 3
    (span,) = prompt.spans
    assert span.layout.frame is not None
    assert set(span.layout.frame.tolist()) == {0, 1, 2}
    assert engine.chat(messages, Pruning(keep=1.0), generation).token_ids == generate(engine, messages)
    answer = engine.chat(messages, Pruning(keep=0.4), generation)
    assert answer.token_ids == greedy_tokens(family, messages, answer, answer.pruning["positions"], NUM_TOKENS)


def test_pictures_beside_videos_are_encoded_as_alone(small: Engine, picture: Picture) -> None:
    family = small.family
    still, film = (
        family.prepare(read_conversation([message]))
        for message in (
            user_message("What?", picture(60, 50)),
            video_message("What?", [picture(60, 40, seed) for seed in range(2)], fps=1.0),
        )
    )
    # As if the checkpoint's frames had fewer tokens than its pictures.
    num_patches = film.spans[0].layout.num_tokens // 2 * BLOCK**2
    for name in ("pixel_values_videos", "video_position_ids"):
        film.pixels[name] = film.pixels[name][:, :num_patches]
    with torch.inference_mode():
        together = [image for images in family.encode([film, still]) for image in images]
        alone = [image for prompt in (film, still) for image in family.encode([prompt])[0]]
        for joined, single in zip(together, alone, strict=True):
            torch.testing.assert_close(joined.features, single.features, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(joined.vision_attention(), single.vision_attention(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("kind", "layer"), [("e2b", 2), ("e2b", 6), ("e2b", 7), ("31b", 0), ("31b", 2), ("31b", 4)])
def test_attention_rows_are_the_eager_ones(load: Load, picture: Picture, kind: str, layer: int) -> None:
    family = load(kind, attention="eager").family
    decoder, prompt = family.decoder, prepare(family, picture(60, 50, 1), picture(40, 90, 2))
    with torch.inference_mode():
        output = family.model(
            input_ids=prompt.input_ids[None], **prompt.pixels, output_attentions=True, output_hidden_states=True
        )

        def rope(number: int) -> tuple[Tensor, Tensor]:
            cos, sin = decoder.rope(output.hidden_states[0], prompt.position_ids, decoder.layer_types[number])
            return cos[0], sin[0]

        first, second = (span.positions for span in prompt.spans)
        pictures = torch.full_like(prompt.input_ids, -1)
        pictures[first], pictures[second] = 0, 1
        source = decoder.source_layer(layer)
        asking = torch.cat([first[-2:], second[:2], torch.tensor([len(prompt.input_ids) - 1])])
        keys = decoder.keys(source, output.hidden_states[source][0], rope(source))
        hidden = output.hidden_states[layer][0]
        rows = decoder.attention_rows(layer, hidden, rope(layer), asking, second, keys=keys, pictures=pictures)
    expected = output.attentions[layer][0].mean(dim=0)[asking][:, second]
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=1e-4)
    both_ways = kind == "31b" and decoder.layer_types[layer] == "sliding_attention"
    assert (rows[2, 1:].max() > 0) == both_ways, "only sliding layers of the larger sizes look ahead in a picture"


def test_each_token_is_the_mean_of_the_patches_in_its_box(small: Engine, picture: Picture) -> None:
    family: Any = small.family
    prompt = prepare(family, picture(90, 60))
    (layout,) = (span.layout for span in prompt.spans)
    rows, columns = layout.grids[0]
    assert MOST_TOKENS - 10 <= rows * columns == layout.num_tokens <= MOST_TOKENS
    positions = prompt.pixels["image_position_ids"]
    for column, row in [(0, 0), (5, 0), (6, 3), (3 * columns - 1, 3 * rows - 1)]:
        patches = torch.zeros(*positions.shape[:2], family.visual.config.hidden_size)
        patches[0, row * columns * BLOCK + column] = 1
        pooled, _ = family.visual.pooler(patches, positions, (positions == -1).all(dim=-1), MOST_TOKENS)
        (token,) = pooled[0].abs().sum(dim=1).nonzero().flatten().tolist()
        left, top, right, bottom = layout.boxes[token].tolist()
        assert left <= (column + 0.5) / (columns * BLOCK) < right
        assert top <= (row + 0.5) / (rows * BLOCK) < bottom


def test_signals_are_those_of_the_tower(load: Load, picture: Picture) -> None:
    family: Any = load("31b", attention="eager").family
    prompt = prepare(family, picture(60, 50, 1), picture(20, 90, 2))
    with torch.inference_mode():
        (images,) = family.encode([prompt])
        output = family.visual(
            prompt.pixels["pixel_values"], prompt.pixels["image_position_ids"], output_attentions=True
        )
        for number, (tokens, span) in enumerate(zip(images, prompt.spans, strict=True)):
            rows, columns = span.layout.grids[0]
            patches = rows * columns * BLOCK**2
            received = output.attentions[-1][number, :, :patches, :patches].mean(dim=(0, 1))
            expected = received.view(rows, BLOCK, columns, BLOCK).mean(dim=(1, 3)).flatten()
            torch.testing.assert_close(tokens.vision_attention(), expected, atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(tokens.project(tokens.encoder_features()), tokens.features)
            assert set(tokens.tiles().tolist()) == {number + 1}
        pooled = torch.cat([tokens.encoder_features() for tokens in images])
        torch.testing.assert_close(pooled, output.last_hidden_state)


@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_flops_are_those_torch_counts(engine: Engine, picture: Picture, keep: float) -> None:
    """Include layers that keep nothing: behind the last stage they run for the last token of the prompt only."""
    engine.forget()
    if engine.family.decoder.shape.router_size:
        # The counter does not know the grouped products that run the experts otherwise.
        engine.family.model.set_experts_implementation("eager")
    pruning = Pruning(method="random", keep=keep)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = engine.chat([user_message("What?", picture(90, 60, 1))], pruning, Generation(max_tokens=3))
    assert answer.usage.completion_tokens == 3
    assert answer.flops.total == counter.get_total_flops()


def test_an_unpruned_prompt_costs_what_transformers_computes(small: Engine, picture: Picture) -> None:
    small.forget()
    messages, unpruned = [user_message("What is this?", picture(60, 50, 1))], Pruning(method="none")
    answer = small.chat(messages, unpruned, Generation(max_tokens=1))
    prompt = prepare(small.family, picture(60, 50, 1))
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        small.family.model(input_ids=prompt.input_ids[None], **prompt.pixels, use_cache=True, logits_to_keep=1)
    assert answer.flops.total == counter.get_total_flops()


def test_stages_among_layers_that_read_other_layers(small: Engine, picture: Picture) -> None:
    """Compare the schedule's own stages with the reference, the formulas with the counter and the cache's contents."""
    small.forget()
    messages, generation = [user_message("What?", picture(90, 60, 1))], Generation(max_tokens=4)
    pruning = Pruning(method="fastv", schedule="3:30,5:12,7:4")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = small.chat(messages, pruning, generation)
    assert [stage.layer for stage in answer.usage.stages] == [0, 3, 5, 7]
    assert answer.flops.total == counter.get_total_flops()
    assert answer.token_ids == greedy_tokens(small.family, messages, answer, "original", len(answer.token_ids))


def test_cache_bytes_are_those_of_own_keys_and_copies(engine: Engine, picture: Picture) -> None:
    family, pruning = engine.family, Pruning(method="random", keep=0.4)
    prompt = prepare(family, picture(60, 50, 1))
    with torch.inference_mode():
        (images,) = family.encode([prompt])
        (groups,) = plan_groups([prompt], pruning, family.decoder.num_layers)
        embedded = EmbeddedPrompt(
            prompt.input_ids, prompt.position_ids, [span.positions for span in prompt.spans], images, groups
        )
        clock = Clock(family.decoder.device)
        prefilled = Prefill(family.decoder, [embedded], pruning.method_instance, "original", clock).run()
        decoding = Decoding(family.decoder, prefilled.cache, prefilled.segments)
        for token in (15, 16):
            decoding.step(torch.tensor([token]))
    keys, values = prefilled.cache.keys_and_values(family.decoder.num_layers)
    per_layer = [part.lengths[0] for part in prefilled.segments for _ in range(part.start, part.end)]
    held = sum(tensor.nbytes for tensor in (*keys, *values))
    assert family.decoder.shape.kv_cache_bytes(per_layer, 2, 4) == held


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_a_question_about_a_known_picture_is_answered_as_if_it_were_new(
    engine: Engine, picture: Picture, keep: float
) -> None:
    pruning, generation = Pruning(keep=keep), Generation(max_tokens=NUM_TOKENS)
    engine.chat([user_message("What is this?", picture(60, 50, 1))], pruning, generation)
    messages = [user_message("Where was it?", picture(60, 50, 1), picture(40, 90, 2))]
    again = engine.chat(messages, pruning, generation)
    assert again.usage.reused_tokens > 0
    engine.forget()
    assert engine.chat(messages, pruning, generation).token_ids == again.token_ids


def test_models_with_shared_keys_are_not_compiled(small: Engine) -> None:
    with pytest.raises(UnsupportedModel, match="share keys and values"):
        StepPool(small.family.decoder, compiled=False, record=Tape())


def test_a_kernel_that_is_causal_only_is_refused_where_pictures_are_seen_both_ways(load: Load) -> None:
    for kind, refused in (("31b", True), ("e2b", False)):
        family = load(kind).family
        with family.decoder.attending_by("flash_attention_2"):
            if refused:
                with pytest.raises(UnsupportedModel, match="attention=sdpa"):
                    Gemma4Decoder(family.text_model, family.model.lm_head)
            else:
                Gemma4Decoder(family.text_model, family.model.lm_head)


# A token shows 12 x 12 pixels in the small checkpoint; its own number of tokens is 70.
@pytest.mark.parametrize(
    ("bounds", "most"),
    [
        ({}, 70),
        ({"max_pixels": 69 * 144}, 70),
        ({"min_pixels": 70 * 144}, 70),
        ({"min_pixels": 71 * 144}, 140),
        ({"min_pixels": 1120 * 144}, 1120),
        ({"min_pixels": 10_000_000}, 1120),
        ({"min_pixels": 300 * 144, "max_pixels": 400 * 144}, 280),
    ],
)
def test_the_bounds_of_pixels_choose_the_number_of_tokens(
    small: Engine, picture: Picture, bounds: dict[str, int], most: int
) -> None:
    family = small.family
    try:
        family.bound_pixels(bounds.get("min_pixels"), bounds.get("max_pixels"))
        prompt = prepare(family, picture(90, 60))
    finally:
        family.processor.image_processor.max_soft_tokens = MOST_TOKENS
    assert prompt.pixels["pixel_values"].shape[1] == most * BLOCK**2
    assert 0.8 * most < prompt.spans[0].layout.num_tokens <= most


def test_tokens_of_the_processor_are_a_baseline_beside_pruning(load: Load, picture: Picture) -> None:
    engine, messages = load("31b", min_pixels=140 * 144), [user_message("What?", picture(90, 60))]
    answer = engine.chat(messages, Pruning(keep=1.0), Generation(max_tokens=NUM_TOKENS))
    assert 70 < answer.usage.visual_tokens <= 140
    assert answer.token_ids == generate(engine, messages)


def test_pixels_are_those_of_the_processor(small: Engine, picture: Picture) -> None:
    prompt = prepare(small.family, picture(90, 60))
    rows, columns = prompt.spans[0].layout.grids[0]
    assert prompt.pixels["pixel_values"].shape == (1, MOST_TOKENS * BLOCK**2, 3 * PATCH_SIZE**2)
    assert prompt.pixels["mm_token_type_ids"].sum() == rows * columns


def test_a_picture_with_more_patches_in_a_row_than_the_tower_knows_is_refused(load: Load, picture: Picture) -> None:
    engine = load("e2b", min_pixels=1120 * 144)
    with pytest.raises(InvalidImage, match=r"4000 x 10 pixels is too narrow for this model: it would have \d+ patches"):
        engine.chat([user_message("What?", picture(4000, 10))])
