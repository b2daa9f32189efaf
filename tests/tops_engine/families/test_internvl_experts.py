"""Test InternVL over language models with experts: Qwen3-MoE, and GPT-OSS with its attention sinks."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Picture
from tests.support.checkpoints_internvl import save_internvl
from tests.support.slow_reference import greedy_tokens
from tests.support.tape import Tape
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import UnsupportedModel
from tops_engine.generation.attention import attend
from tops_engine.generation.run import Run
from tops_engine.generation.static import StepPool
from tops_engine.settings import Generation, ModelSpec, Pruning

NUM_TOKENS = 8


@pytest.fixture(scope="module", params=["qwen3_moe", "gpt_oss"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = save_internvl(tmp_path_factory.mktemp(request.param), request.param)
    return Engine.load(ModelSpec(model=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(ModelSpec(model=str(save_internvl(tmp_path_factory.mktemp("gpt"), "gpt_oss")), device="cpu"))


def test_answers_are_those_of_generate_and_pruned_those_of_the_reference(engine: Engine, picture: Picture) -> None:
    family, generation = engine.family, Generation(max_tokens=NUM_TOKENS)
    messages = [user_message("Compare.", picture(110, 70), picture(60, 90))]
    prompt = family.prepare(read_conversation(messages))
    with torch.inference_mode():
        output = family.model.generate(
            input_ids=prompt.input_ids[None], **prompt.pixels, max_new_tokens=NUM_TOKENS, do_sample=False
        )
    expected = output[0, len(prompt.input_ids) :].tolist()
    assert engine.chat(messages, Pruning(keep=1.0), generation).token_ids == expected
    answer = engine.chat(messages, Pruning(keep=0.4), generation)
    positions = str(answer.pruning["positions"])
    assert answer.token_ids == greedy_tokens(family, messages, answer, positions, len(answer.token_ids))


def test_static_steps_write_what_the_plain_loop_writes(gpt_oss: Engine, picture: Picture) -> None:
    messages, generation = [user_message("What?", picture(110, 70))], Generation(max_tokens=NUM_TOKENS)
    expected = gpt_oss.chat(messages, Pruning(keep=0.4), generation)
    pool = StepPool(gpt_oss.family.decoder, compiled=False, record=Tape())
    run = Run(gpt_oss.family, "test", [read_conversation(messages)], Pruning(keep=0.4), generation, steps=pool)
    run.start()
    while not run.done:
        run.step()
    assert run.answers()[0].token_ids == expected.token_ids


def test_attention_rows_know_the_sinks(gpt_oss: Engine, picture: Picture) -> None:
    family = gpt_oss.family
    prompt = family.prepare(read_conversation([user_message("What?", picture(110, 70))]))
    (span,) = prompt.spans
    with torch.inference_mode():
        output = family.model(
            input_ids=prompt.input_ids[None], **prompt.pixels, output_attentions=True, output_hidden_states=True
        )
        asking = torch.tensor([len(prompt.input_ids) - 1, len(prompt.input_ids) - 4])
        for layer in (0, 1):  # a sliding and a global one
            hidden = output.hidden_states[layer]
            rope: tuple[Tensor, ...] = family.decoder.rope(hidden, prompt.position_ids, "")
            rows = family.decoder.attention_rows(
                layer, hidden[0], tuple(part[0] for part in rope), asking, span.positions
            )
            expected = output.attentions[layer][0].mean(dim=0)[asking][:, span.positions]
            torch.testing.assert_close(rows, expected, atol=1e-6, rtol=1e-4)


def test_one_token_attends_with_sinks_as_transformers_does() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, 1, 8), torch.randn(2, 3, 11, 8), torch.randn(2, 3, 11, 8)
    mask = torch.zeros(2, 1, 1, 11).masked_fill(torch.rand(2, 1, 1, 11) < 0.3, torch.finfo(torch.float32).min)
    sinks = torch.randn(6)
    attended, _ = attend(None, query, key, value, mask, 0.3, s_aux=sinks)
    scores = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) * 0.3 + mask
    weights = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(2, -1, 1, 1)], dim=-1).softmax(dim=-1)[..., :-1]
    torch.testing.assert_close(attended, (weights @ value.repeat_interleave(2, dim=1)).transpose(1, 2))


@pytest.mark.parametrize("keep", [pytest.param(1.0, marks=pytest.mark.full), 0.3])
def test_flops_are_those_torch_counts(engine: Engine, picture: Picture, keep: float) -> None:
    # The counter does not know the grouped products that run the experts otherwise.
    engine.family.model.set_experts_implementation("eager")
    pruning = Pruning(method="random", keep=keep)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = engine.chat([user_message("What?", picture(90, 60, 1))], pruning, Generation(max_tokens=3))
    assert answer.usage.completion_tokens == 3
    assert answer.flops.total == counter.get_total_flops()


def test_another_language_model_is_refused_with_those_that_run(tmp_path: Path) -> None:
    path = save_internvl(tmp_path) / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["model_type"] = "mistral"
    path.write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match=r"'mistral' model; supported are .*qwen3_moe, gpt_oss"):
        Engine.load(ModelSpec(model=str(tmp_path), device="cpu"))
