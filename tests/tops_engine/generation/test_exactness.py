"""Test that keep=1.0 equals the model itself, and that a pruned run equals the model without the dropped tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.checkpoints import save_llava, save_llava_next, save_siglip_llava
from tests.support.checkpoints_gemma import save_gemma3
from tests.support.checkpoints_gemma4 import save_gemma4
from tests.support.checkpoints_glm import save_glm4v
from tests.support.checkpoints_idefics3 import save_idefics3, save_smolvlm
from tests.support.checkpoints_internvl import save_internvl
from tests.support.checkpoints_lfm2 import save_lfm2_vl
from tests.support.checkpoints_llava_hr import save_llava_hr
from tests.support.checkpoints_mistral import save_mistral3
from tests.support.checkpoints_qwen import (
    save_qwen2_5_vl,
    save_qwen2_vl,
    save_qwen3_5,
    save_qwen3_vl,
    save_qwen3_vl_moe,
)
from tests.support.checkpoints_video import save_next_video, save_onevision
from tests.support.slow_reference import greedy_tokens, keeps_and_positions
from tests.support.tape import Tape
from tests.support.usage import token_counts
from tops_engine.conversation.messages import Message, read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import UnsupportedModel
from tops_engine.generation import static
from tops_engine.generation.run import Run
from tops_engine.generation.static import StepPool
from tops_engine.settings import Generation, ModelSpec, Pruning

Conversations = dict[str, list[Message]]
NUM_TOKENS = 16

# Between the logits of the best two tokens. Paths that differ in the order of float32 sums differ by up to 1e-5.
LEAST_MARGIN = 5e-5


@pytest.fixture(scope="module")
def conversations(picture: Callable[..., Image.Image]) -> Conversations:
    sizes = [(110, 70), (60, 90), (60, 60), (60, 250)]
    wide, tall, square, thin = (picture(*size, seed) for seed, size in enumerate(sizes))
    return {
        "no image": [user_message("What?")],
        "one image": [user_message("What is shown in this picture?", wide)],
        "two images": [user_message("Compare.", square, thin)],
        "three images in two turns": [
            user_message("Hello", square),
            {"role": "assistant", "content": "A dog"},
            user_message("and these?", tall, wide),
        ],
    }


VARIANTS: dict[str, tuple[Callable[..., Path], str, dict[str, Any], str]] = {
    "llava-llama": (save_llava, "llama", {}, "sdpa"),
    "llava-llama-eager": (save_llava, "llama", {}, "eager"),
    "llava-mistral-gqa": (save_llava, "mistral", {}, "sdpa"),
    "llava-mistral-sliding": (save_llava, "mistral", {"sliding_window": 20}, "sdpa"),
    "llava-mistral-sliding-eager": (save_llava, "mistral", {"sliding_window": 20}, "eager"),
    "llava-qwen2": (save_llava, "qwen2", {}, "sdpa"),
    "llava-new-layout": (save_llava, "llama", {"old_layout": False}, "sdpa"),
    "llava-siglip-qwen2": (save_siglip_llava, "qwen2", {}, "sdpa"),
    "next-llama": (save_llava_next, "llama", {}, "sdpa"),
    "next-mistral-eager": (save_llava_next, "mistral", {}, "eager"),
    "next-qwen2": (save_llava_next, "qwen2", {}, "sdpa"),
    "next-llama3": (save_llava_next, "llama3", {}, "sdpa"),
    "gemma3": (save_gemma3, "gemma3", {}, "sdpa"),
    "gemma3-eager": (save_gemma3, "gemma3", {}, "eager"),
    "gemma4-e2b": (save_gemma4, "e2b", {}, "sdpa"),
    "gemma4-e2b-eager": (save_gemma4, "e2b", {}, "eager"),
    "gemma4-31b": (save_gemma4, "31b", {}, "sdpa"),
    "gemma4-31b-eager": (save_gemma4, "31b", {}, "eager"),
    "gemma4-26b-a4b": (save_gemma4, "26b-a4b", {}, "sdpa"),
    "lfm2-vl": (save_lfm2_vl, "lfm2", {}, "sdpa"),
    "lfm2-vl-eager": (save_lfm2_vl, "lfm2", {}, "eager"),
    "mistral3": (save_mistral3, "mistral", {}, "sdpa"),
    "mistral3-eager": (save_mistral3, "mistral", {}, "eager"),
    "ministral3": (save_mistral3, "ministral3", {}, "sdpa"),
    "ministral3-eager": (save_mistral3, "ministral3", {}, "eager"),
    "glm4v": (save_glm4v, "glm4v", {}, "sdpa"),
    "glm4v-eager": (save_glm4v, "glm4v", {}, "eager"),
    "glm4v-moe": (save_glm4v, "glm4v_moe", {}, "sdpa"),
    "qwen2-vl": (save_qwen2_vl, "qwen2", {}, "sdpa"),
    "qwen2.5-vl": (save_qwen2_5_vl, "qwen2", {}, "sdpa"),
    "qwen2.5-vl-eager-tied": (save_qwen2_5_vl, "qwen2", {"tie_word_embeddings": True}, "eager"),
    "qwen3-vl": (save_qwen3_vl, "qwen3", {}, "sdpa"),
    "qwen3-vl-eager": (save_qwen3_vl, "qwen3", {}, "eager"),
    "qwen3-vl-moe": (save_qwen3_vl_moe, "qwen3_moe", {}, "sdpa"),
    "qwen3-vl-moe-eager": (save_qwen3_vl_moe, "qwen3_moe", {}, "eager"),
    "qwen3.5": (save_qwen3_5, "qwen3_5", {}, "sdpa"),
    "qwen3.5-eager-tied": (save_qwen3_5, "qwen3_5", {"tie_word_embeddings": True}, "eager"),
    "internvl-qwen2": (save_internvl, "qwen2", {}, "sdpa"),
    "internvl-qwen2-eager": (save_internvl, "qwen2", {}, "eager"),
    "internvl-qwen2-tied": (save_internvl, "qwen2", {"tie_word_embeddings": True}, "sdpa"),
    "internvl-qwen3": (save_internvl, "qwen3", {}, "sdpa"),
    "internvl-qwen3-moe": (save_internvl, "qwen3_moe", {}, "sdpa"),
    "internvl-gpt-oss": (save_internvl, "gpt_oss", {}, "sdpa"),
    "internvl-6b-tower": (save_internvl, "llama", {"vision": {"use_qk_norm": True, "norm_type": "rms_norm"}}, "sdpa"),
    "idefics3-llama": (save_idefics3, "llama", {}, "sdpa"),
    "idefics3-gqa-eager": (save_idefics3, "llama", {"num_key_value_heads": 2}, "eager"),
    "smolvlm-llama": (save_smolvlm, "llama", {"num_key_value_heads": 2}, "sdpa"),
    "llava-hr": (save_llava_hr, "llama", {}, "sdpa"),
    "llava-hr-eager": (save_llava_hr, "llama", {"image_size": 64}, "eager"),
    "onevision-qwen2": (save_onevision, "qwen2", {}, "sdpa"),
    "onevision-qwen2-eager-tied": (save_onevision, "qwen2", {"tie_word_embeddings": True}, "eager"),
    "next-video-llama": (save_next_video, "llama", {}, "sdpa"),
    "next-video-mistral-eager": (save_next_video, "mistral", {}, "eager"),
    "smolvlm-unsplit": (save_smolvlm, "llama", {"splits": False}, "sdpa"),
}


#: Attention and tied weights belong to the decoder, not to a family: other variants show them for each decoder class.
#: The plain variant of each family is compared by ``families/test_families.py``, on shorter conversations.
REPEATED = {
    "gemma3",
    "gemma4-26b-a4b",
    "gemma4-31b",
    "gemma4-31b-eager",
    "gemma4-e2b",
    "gemma4-e2b-eager",
    "glm4v",
    "glm4v-eager",
    "glm4v-moe",
    "idefics3-gqa-eager",
    "idefics3-llama",
    "internvl-gpt-oss",
    "internvl-qwen2",
    "internvl-qwen2-eager",
    "internvl-qwen2-tied",
    "internvl-qwen3",
    "internvl-qwen3-moe",
    "lfm2-vl",
    "lfm2-vl-eager",
    "llava-hr",
    "llava-hr-eager",
    "llava-new-layout",
    "ministral3",
    "ministral3-eager",
    "mistral3",
    "mistral3-eager",
    "next-mistral-eager",
    "next-qwen2",
    "next-video-llama",
    "next-video-mistral-eager",
    "onevision-qwen2",
    "onevision-qwen2-eager-tied",
    "qwen2-vl",
    "qwen2.5-vl-eager-tied",
    "qwen3-vl-eager",
    "qwen3-vl-moe",
    "qwen3-vl-moe-eager",
    "qwen3.5",
    "smolvlm-llama",
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.full if name in REPEATED else ()) for name in VARIANTS],
    ids=str,
)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    save, kind, options, attention = VARIANTS[request.param]
    folder = save(tmp_path_factory.mktemp("checkpoint"), kind, **options)
    return Engine.load(ModelSpec(model=str(folder), device="cpu", attention=attention))


def generate(engine: Engine, messages: list[Message], **options: Any) -> list[int]:
    """Return the answer of transformers' own generate, and check that no token of it is a near tie."""
    family = engine.family
    prompt = family.prepare(read_conversation(messages))
    with torch.inference_mode():
        output = family.model.generate(
            input_ids=prompt.input_ids[None],
            **prompt.pixels,
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
    best, second = torch.cat(output.scores).topk(2).values.unbind(dim=-1)
    margin = float((best - second).min())
    assert margin > LEAST_MARGIN, f"two tokens are {margin:.1e} apart; give the checkpoint another seed"
    return output.sequences[0, len(prompt.input_ids) :].tolist()


def test_unpruned_answers_are_those_of_generate_alone_and_in_a_batch(
    engine: Engine, conversations: Conversations
) -> None:
    expected = [generate(engine, messages) for messages in conversations.values()]
    generation = Generation(max_tokens=NUM_TOKENS)
    alone = [engine.chat(messages, Pruning(keep=1.0), generation) for messages in conversations.values()]
    together = engine.batch(list(conversations.values()), Pruning(keep=1.0), generation)
    assert [answer.token_ids for answer in alone] == expected
    assert [answer.token_ids for answer in together] == expected
    assert any(len(set(tokens)) > 4 for tokens in expected), "the random model repeats itself; nothing is compared"


# The penalty is applied to logits, by code that does not depend on the family.
@pytest.mark.parametrize(
    "engine",
    [pytest.param(name, marks=() if name in ("llava-llama", "qwen2.5-vl") else pytest.mark.full) for name in VARIANTS],
    indirect=True,
)
def test_repetition_penalty_is_that_of_generate(engine: Engine, conversations: Conversations) -> None:
    messages = list(conversations.values())
    generation = Generation(max_tokens=NUM_TOKENS, repetition_penalty=1.5)
    expected = [generate(engine, conversation, repetition_penalty=1.5) for conversation in messages]
    assert [answer.token_ids for answer in engine.batch(messages, Pruning(keep=1.0), generation)] == expected


@pytest.mark.parametrize("keep", [pytest.param(1.0, marks=pytest.mark.full), 0.3])
def test_static_steps_write_what_the_plain_loop_writes(
    engine: Engine, conversations: Conversations, keep: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, "GRAIN", 4)
    messages, generation = list(conversations.values()), Generation(max_tokens=8)
    expected = engine.batch(messages, Pruning(keep=keep), generation)
    read = [read_conversation(conversation) for conversation in messages]
    decoder = engine.family.decoder
    if not (decoder.can_resume(decoder.num_layers) and decoder.layers_stand_alone):
        with pytest.raises(UnsupportedModel, match=r"recurrent|share keys and values"):
            StepPool(decoder, compiled=False, record=Tape())
        return
    pool = StepPool(engine.family.decoder, compiled=False, record=Tape())
    run = Run(engine.family, "test", read, Pruning(keep=keep), generation, steps=pool)
    run.start()
    while not run.done:
        run.step()
    assert [answer.token_ids for answer in run.answers()] == [answer.token_ids for answer in expected]


@keeps_and_positions
def test_pruned_answers_are_those_of_the_slow_reference(
    engine: Engine, conversations: Conversations, keep: float, positions: Any
) -> None:
    family = engine.family
    generation = Generation(max_tokens=8)
    for messages in conversations.values():
        answer = engine.chat(messages, Pruning(keep=keep, positions=positions), generation)
        expected = greedy_tokens(family, messages, answer, positions, len(answer.token_ids))
        assert answer.token_ids == expected


@pytest.mark.parametrize(
    ("method", "positions"),
    [
        ("tops", "contiguous"),
        ("random", "original"),
        pytest.param("tops", "original", marks=pytest.mark.full),
        pytest.param("random", "contiguous", marks=pytest.mark.full),
    ],
)
def test_a_pruned_batch_answers_as_each_conversation_alone(
    engine: Engine, conversations: Conversations, method: str, positions: Any
) -> None:
    pruning = Pruning(method=method, keep=0.4, positions=positions)
    generation = Generation(max_tokens=NUM_TOKENS)
    alone = []
    for messages in conversations.values():
        engine.forget()
        alone.append(engine.chat(messages, pruning, generation))
    together = engine.batch(list(conversations.values()), pruning, generation)
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert [token_counts(answer) for answer in together] == [token_counts(answer) for answer in alone]


def test_a_pruned_sliding_window_counts_the_tokens_that_remain(tmp_path: Path, conversations: Conversations) -> None:
    """Use a window as wide as the kept sequence: the model then equals the same model without a window."""
    messages = conversations["three images in two turns"]
    full = Engine.load(ModelSpec(model=str(save_llava(tmp_path / "full", "mistral")), device="cpu"))
    generation = Generation(max_tokens=8)
    expected = full.chat(messages, Pruning(keep=0.3, method="random"), generation)
    longest = expected.usage.prompt_tokens - expected.usage.visual_tokens
    longest += sum(expected.usage.stages[0].visual_tokens) + len(expected.token_ids)
    wide = save_llava(tmp_path / "wide", "mistral", sliding_window=longest)
    assert longest < expected.usage.prompt_tokens, "the unpruned prompt would have to slide"
    answer = Engine.load(ModelSpec(model=str(wide), device="cpu")).chat(
        messages, Pruning(keep=0.3, method="random"), generation
    )
    assert answer.token_ids == expected.token_ids
