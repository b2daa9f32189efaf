"""Test PaliGemma: prompts that attend both ways and share nothing, capped scores, places in answers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Picture
from tests.support.checkpoints_paligemma import save_paligemma
from tests.support.slow_reference import greedy_tokens, model_inputs_embeds
from tests.support.tape import Tape
from tops_engine.conversation.messages import Message, read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import UnsupportedModel
from tops_engine.families import Family, Prompt
from tops_engine.families.paligemma import PaliGemmaDecoder
from tops_engine.generation.run import Run
from tops_engine.generation.static import StepPool
from tops_engine.settings import Generation, ModelSpec, Pruning
from tops_engine.verification.transformers_model import generate

KINDS = ("gemma", "gemma2")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    def load(kind: str) -> Engine:
        folder: Path = save_paligemma(tmp_path_factory.mktemp(kind), kind)
        return Engine.load(ModelSpec(model=str(folder), device="cpu", attention="eager"))

    return {kind: load(kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, engines: dict[str, Engine]) -> Engine:
    return engines[request.param]


def prepare(family: Family, *pictures: Any) -> Prompt:
    return family.prepare(read_conversation([user_message("What is this?", *pictures)]))


def test_the_pictures_stand_before_the_text(engine: Engine, picture: Picture) -> None:
    prompt = prepare(engine.family, picture(110, 70), picture(30, 30))
    assert engine.family.tokenizer.decode(prompt.input_ids) == f"{'<image>' * 32}<bos>What is this?\n"
    assert prompt.position_ids[0].tolist() == list(range(1, len(prompt.input_ids) + 1))
    assert [span.layout.grids for span in prompt.spans] == [((4, 4),), ((4, 4),)]


def test_the_capped_scores_and_the_window_of_paligemma_2(engines: dict[str, Engine], picture: Picture) -> None:
    engine = engines["gemma2"]
    messages: list[Message] = [user_message("What is this?", picture(110, 70, 1), picture(60, 60, 2))]
    prompt = engine.family.prepare(read_conversation(messages))
    assert len(prompt.input_ids) > engine.family.text_model.config.sliding_window
    unpruned = engine.chat(messages, Pruning(keep=1.0), Generation(max_tokens=5))
    assert unpruned.token_ids == generate(engine.family, prompt, 5).tokens
    pruned = engine.chat(messages, Pruning(keep=0.4, positions="original"), Generation(max_tokens=5))
    assert pruned.token_ids == greedy_tokens(engine.family, messages, pruned, "original", len(pruned.token_ids))


def test_no_prompt_goes_on_from_the_beginning_of_another(engine: Engine, picture: Picture) -> None:
    """What a picture's tokens compute depends on the question behind them."""
    shown, generation = picture(110, 70, 1), Generation(max_tokens=5)
    first = engine.chat([user_message("Is it red?", shown)], Pruning(keep=0.6), generation)
    second = engine.chat([user_message("Is it a dog?", shown)], Pruning(keep=0.6), generation)
    engine.forget()
    assert engine.chat([user_message("Is it a dog?", shown)], Pruning(keep=0.6), generation).token_ids == (
        second.token_ids
    )
    assert first.usage.reused_tokens == second.usage.reused_tokens == 0


@pytest.mark.parametrize("layer", [2, 3])
def test_attention_rows_are_the_eager_ones(engine: Engine, picture: Picture, layer: int) -> None:
    family = engine.family
    prompt, decoder = prepare(family, picture(110, 70, 1), picture(60, 60, 2)), family.decoder
    with torch.inference_mode():
        output = family.model(
            input_ids=prompt.input_ids[None], **prompt.pixels, output_attentions=True, output_hidden_states=True
        )
        hidden = output.hidden_states[layer]
        rope = decoder.rope(hidden, prompt.position_ids, decoder.layer_types[layer])
        asking, visual = torch.arange(len(prompt.input_ids))[-5:], prompt.spans[0].positions
        whole = torch.zeros(len(prompt.input_ids), dtype=torch.int64)
        parts = tuple(part[0] for part in rope)
        rows = decoder.attention_rows(layer, hidden[0], parts, asking, visual, pictures=whole)
    expected = output.attentions[layer][0].mean(dim=0)[asking][:, visual]
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=1e-4)


def test_features_and_signals_are_those_of_the_tower(engine: Engine, picture: Picture) -> None:
    family = engine.family
    prompt = prepare(family, picture(110, 70, 1))
    embeds = model_inputs_embeds(family, prompt)[0]
    with torch.inference_mode():
        ((tokens,),) = family.encode([prompt])
        projected = tokens.project(tokens.encoder_features())
        attentions = family.model.model.vision_tower(prompt.pixels["pixel_values"], output_attentions=True).attentions
    torch.testing.assert_close(tokens.features, embeds[prompt.spans[0].positions], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(projected, tokens.features)
    torch.testing.assert_close(tokens.vision_attention(), attentions[-1].mean(dim=(1, 2))[0])


def test_flops_are_those_torch_counts(engine: Engine, picture: Picture) -> None:
    engine.forget()
    pruning = Pruning(method="random", keep=0.4)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = engine.chat([user_message("What?", picture(150, 80))], pruning, Generation(max_tokens=3))
    assert answer.flops.total == counter.get_total_flops()


def test_locations_are_those_of_the_original_picture(engine: Engine, picture: Picture) -> None:
    prompt = prepare(engine.family, picture(200, 100))
    (box,) = engine.family.places(prompt, "<loc0256><loc0512><loc0512><loc0768> cat").boxes
    assert [round(value, 1) for value in (box.left, box.top, box.right, box.bottom)] == [100.0, 25.0, 150.0, 50.0]


def test_recorded_steps_cap_scores_too(engines: dict[str, Engine], picture: Picture) -> None:
    family = engines["gemma2"].family
    conversations = [read_conversation([user_message("What is this?", picture(110, 70, 1), picture(60, 60, 2))])]

    def tokens(steps: StepPool | None) -> list[int]:
        run = Run(family, "test", conversations, Pruning(keep=0.4), Generation(max_tokens=6), steps=steps)
        run.start()
        while not run.done:
            run.step()
        (answer,) = run.answers()
        return answer.token_ids

    assert tokens(StepPool(family.decoder, compiled=False, record=Tape())) == tokens(None)


def test_a_kernel_that_is_causal_only_is_refused(engines: dict[str, Engine]) -> None:
    family = engines["gemma"].family
    with family.decoder.attending_by("flash_attention_2"), pytest.raises(UnsupportedModel, match="attention=sdpa"):
        PaliGemmaDecoder(family.text_model, family.model.lm_head)
