"""Test Qwen3.5: recurrent states with kept tokens only, attention of full layers, and the cost of a run."""

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Picture
from tests.support.checkpoints_qwen import save_qwen3_5, save_qwen3_5_moe
from tests.support.slow_reference import model_text_inputs
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.device.clock import Clock
from tops_engine.engine import Engine
from tops_engine.families.qwen3_5 import HybridShape
from tops_engine.generation.batch_state import EmbeddedPrompt
from tops_engine.generation.decode import Decoding
from tops_engine.generation.planning import plan_groups
from tops_engine.generation.prefill import Prefill, Prefilled
from tops_engine.settings import Generation, ModelSpec, Pruning

LINEAR, FULL = (0, 1, 2, 4, 5, 6), (3, 7)


@pytest.fixture(scope="module", params=[save_qwen3_5, save_qwen3_5_moe])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = request.param(tmp_path_factory.mktemp("qwen3_5"))
    return Engine.load(ModelSpec(model=str(folder), device="cpu", attention="eager"))


def prefill(engine: Engine, pruning: Pruning, pictures: list[Image.Image]) -> Prefilled:
    """Read a question about each picture, as one batch."""
    family = engine.family
    questions = ["What is shown in this picture?", "Why?", "Who?"]
    conversations = [[user_message(question, picture)] for question, picture in zip(questions, pictures, strict=False)]
    with torch.inference_mode():
        prompts = [family.prepare(read_conversation(messages)) for messages in conversations]
        planned = plan_groups(prompts, pruning, family.decoder.num_layers)
        embedded = [
            EmbeddedPrompt(
                prompt.input_ids,
                prompt.position_ids,
                [span.positions for span in prompt.spans],
                images,
                groups,
            )
            for prompt, images, groups in zip(prompts, family.encode(prompts), planned, strict=True)
        ]
        clock = Clock(family.decoder.device)
        return Prefill(family.decoder, embedded, pruning.method_instance, "original", clock).run()


def states(prefilled: Prefilled, layer: int) -> tuple[Tensor, Tensor]:
    assert prefilled.cache.states is not None
    store = prefilled.cache.states.layers[layer]
    return store.conv_states[0], store.recurrent_states[0]


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_padding_of_a_ragged_batch_is_in_no_state(engine: Engine, picture: Picture, keep: float) -> None:
    pictures = [picture(200, 130, 1), picture(60, 60, 2), picture(90, 130, 3)]
    together = prefill(engine, Pruning(keep=keep), list(pictures))
    assert len(set(together.segments[-1].lengths)) > 1
    alone = [prefill(engine, Pruning(keep=keep), [pictures[0]])]
    for layer in LINEAR:
        for joined, single in zip(states(together, layer), states(alone[0], layer), strict=True):
            torch.testing.assert_close(joined[:1], single, atol=1e-5, rtol=1e-4)


def test_the_states_of_a_prompt_come_back_when_tokens_are_read_instead(engine: Engine, picture: Picture) -> None:
    decoder = engine.family.decoder
    prefilled = prefill(engine, Pruning(keep=0.5), [picture(60, 60, 2), picture(90, 130, 3)])
    decoding = Decoding(decoder, prefilled.cache, prefilled.segments)
    with torch.inference_mode():
        tokens = torch.tensor([[5, 9, 120], [7, 8, 31]])
        stepwise = torch.stack([decoding.step(column) for column in tokens.T], dim=1)
        for _ in range(2):
            torch.testing.assert_close(decoding.read_instead(tokens), stepwise, atol=1e-3, rtol=1e-3)


def test_attention_rows_of_full_layers_are_the_eager_ones(engine: Engine, picture: Picture) -> None:
    family = engine.family
    prompt = family.prepare(read_conversation([user_message("What is this?", picture(200, 130))]))
    inputs = model_text_inputs(family, prompt)
    text, visual = torch.tensor([-1, -4]) + inputs.embeds.shape[1], prompt.spans[0].positions
    with torch.inference_mode():
        output = family.text_model(
            inputs_embeds=inputs.embeds,
            position_ids=inputs.positions,
            output_attentions=True,
            output_hidden_states=True,
        )
        cos, sin = family.decoder.rope(inputs.embeds, inputs.positions, "full_attention")
        for number, layer in enumerate(FULL):
            hidden = output.hidden_states[layer][0]
            rows = family.decoder.attention_rows(layer, hidden, (cos[0], sin[0]), text, visual)
            expected = output.attentions[number][0].mean(dim=0)[text][:, visual]
            torch.testing.assert_close(rows, expected, atol=1e-6, rtol=1e-4)


def test_the_report_names_the_full_layer_that_rated(engine: Engine, picture: Picture) -> None:
    usage = engine.chat([user_message("What?", picture(200, 130))], Pruning(keep=0.4), Generation(max_tokens=2)).usage
    assert [(stage.layer, stage.rating_layer) for stage in usage.stages] == [(0, None), (3, 3), (6, 7)]
    random = Pruning(method="random", keep=0.4)
    usage = engine.chat([user_message("What?", picture(200, 130))], random, Generation(max_tokens=2)).usage
    assert [stage.rating_layer for stage in usage.stages] == [None]


def test_a_known_picture_is_read_again(engine: Engine, picture: Picture) -> None:
    generation = Generation(max_tokens=8)
    engine.chat([user_message("What is this?", picture(200, 130))], Pruning(keep=0.5), generation)
    again = engine.chat([user_message("Where was it?", picture(200, 130))], Pruning(keep=0.5), generation)
    engine.forget()
    fresh = engine.chat([user_message("Where was it?", picture(200, 130))], Pruning(keep=0.5), generation)
    assert again.usage.reused_tokens == 0
    assert again.token_ids == fresh.token_ids


@pytest.mark.parametrize("pruning", [Pruning(method="none"), Pruning(method="random", keep=0.3)])
def test_flops_differ_from_torchs_by_what_the_fallback_does_otherwise(
    engine: Engine, picture: Picture, pruning: Pruning
) -> None:
    engine.forget()
    if engine.family.decoder.shape.router_size:
        # The counter does not know the grouped products that run the experts otherwise.
        engine.family.model.set_experts_implementation("eager")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = engine.chat([user_message("What?", picture(200, 130))], pruning, Generation(max_tokens=3))
    shape, steps = engine.family.decoder.shape, answer.usage.completion_tokens - 1
    assert isinstance(shape, HybridShape)
    assert steps == 2
    # The delta rule of one token is written without matrix products ...
    delta_rule = steps * 3 * 2 * shape.num_value_heads * shape.key_head_dim * shape.value_head_dim
    # ... and the convolution makes outputs that are cut off: a kernel's length but one in the prompt, one in each step.
    surplus = 2 * shape.convolved_size * shape.kernel_size * (shape.kernel_size - 1 + steps)
    assert answer.flops.total - counter.get_total_flops() == len(LINEAR) * (delta_rule - surplus)


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_cache_bytes_are_those_of_keys_values_and_states(engine: Engine, picture: Picture, keep: float) -> None:
    pruning = Pruning(keep=keep)
    prefilled = prefill(engine, pruning, [picture(200, 130)])
    tensors = [tensor for layer in LINEAR for tensor in states(prefilled, layer)]
    keys, values = prefilled.cache.keys_and_values(engine.family.decoder.num_layers)
    assert len(keys) == len(values) == len(FULL)
    held = sum(tensor.numel() * tensor.element_size() for tensor in [*tensors, *keys, *values])
    per_layer = [part.lengths[0] for part in prefilled.segments for _ in range(part.start, part.end)]
    assert engine.family.decoder.shape.kv_cache_bytes(per_layer, 0, 4) == held
