"""Compare scores of given answers, from one pass over the prompt's cache, with passes over the whole sequence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Picture
from tests.support.checkpoints import save_llava, save_llava_next
from tests.support.checkpoints_gemma import save_gemma3
from tests.support.checkpoints_internvl import save_internvl
from tests.support.checkpoints_qwen import save_qwen2_5_vl, save_qwen3_5, save_qwen3_vl
from tests.support.slow_reference import answer_logits
from tops_engine.conversation.messages import Message, read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.settings import Generation, ModelSpec, Pruning

MODELS: dict[str, tuple[Callable[..., Path], dict[str, Any], str]] = {
    "llava": (save_llava, {}, "sdpa"),
    "llava eager": (save_llava, {}, "eager"),
    "qwen2.5-vl": (save_qwen2_5_vl, {}, "sdpa"),
    "qwen3-vl": (save_qwen3_vl, {}, "sdpa"),
    "qwen3.5": (save_qwen3_5, {}, "sdpa"),
    "gemma3": (save_gemma3, {}, "sdpa"),
    "internvl": (save_internvl, {}, "sdpa"),
}


@pytest.fixture(scope="module", params=sorted(MODELS))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    save, options, attention = MODELS[request.param]
    folder = save(tmp_path_factory.mktemp("checkpoint") / "model", **options)
    return Engine.load(ModelSpec(model=str(folder), device="cpu", attention=attention))


@pytest.mark.parametrize("pruning", [Pruning(keep=0.5), Pruning(method="fastv", keep=0.5), Pruning(method="none")])
def test_scores_equal_reading_the_whole_sequence_again(engine: Engine, picture: Picture, pruning: Pruning) -> None:
    conversations: list[list[Message]] = [
        [user_message("What is shown in this picture?", picture(80, 60))],
        [user_message("Why?", picture(56, 56, 1))],
    ]
    references = [[5, 9, 120, 31, 40], [7, 8]]
    scored = engine.scored_batch(conversations, pruning, Generation(max_tokens=3), references)
    for messages, reference, score in zip(conversations, references, scored, strict=True):
        logits = answer_logits(engine.family, messages, score.answer, pruning.resolved_positions, reference)
        expected = torch.nn.functional.cross_entropy(logits.float(), torch.tensor(reference))
        assert score.loss == pytest.approx(float(expected), abs=2e-3)
        torch.testing.assert_close(score.first_token, logits[0].float().log_softmax(dim=-1), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_scores_in_a_sliding_window_are_those_of_transformers(tmp_path: Path, picture: Picture, attention: str) -> None:
    folder = save_llava_next(tmp_path / "model", kind="mistral", sliding_window=24)
    engine = Engine.load(ModelSpec(model=str(folder), device="cpu", attention=attention))
    conversations = [[user_message("What is shown?", picture(80, 60))], [user_message("Why?", picture(56, 56, 1))]]
    references = [[5, 9, 120, 31, 40, 11, 12], [7, 8]]
    scored = engine.scored_batch(conversations, Pruning(method="none"), Generation(max_tokens=2), references)
    for messages, reference, score in zip(conversations, references, scored, strict=True):
        prompt = engine.family.prepare(read_conversation(messages))
        ids = torch.cat([prompt.input_ids, torch.tensor(reference)])[None]
        with torch.inference_mode():
            logits = engine.family.model(input_ids=ids, **prompt.pixels).logits[0, len(prompt.input_ids) - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits.float(), torch.tensor(reference))
        assert score.loss == pytest.approx(float(expected), abs=1e-4)
