"""What every model type promises in the table of `tops models`, on a small checkpoint of each."""

import itertools
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Picture, Tops
from tests.support.checkpoints import save_llava, save_llava_next, vision_config
from tests.support.checkpoints_clip import save_clip
from tests.support.checkpoints_gemma import save_gemma3
from tests.support.checkpoints_idefics3 import save_idefics3, save_smolvlm
from tests.support.checkpoints_internvl import save_internvl
from tests.support.checkpoints_llava_hr import save_llava_hr
from tests.support.checkpoints_qwen import save_qwen2_5_vl, save_qwen2_vl, save_qwen3_5, save_qwen3_vl
from tests.support.checkpoints_video import save_llava_video, save_next_video, save_onevision
from tests.support.slow_reference import greedy_tokens
from tops_engine.conversation.messages import Message, read_conversation, user_message, video_message
from tops_engine.engine import Engine
from tops_engine.errors import UnsupportedModel
from tops_engine.families import FAMILIES
from tops_engine.methods import METHODS
from tops_engine.settings import Generation, ModelSpec, Pruning
from tops_engine.supported_models import ModelType, model_types

SAVE: dict[str, Callable[..., Path]] = {
    "gemma3": save_gemma3,
    "idefics3": save_idefics3,
    "internvl": save_internvl,
    "llava": save_llava,
    "llava_hr": save_llava_hr,
    "llava_next": save_llava_next,
    "llava_next_video": save_next_video,
    "llava_onevision": save_onevision,
    # Transformers has no newlines in videos but one after them.
    "llava_qwen": partial(save_llava_video, mm_newline_position="one_token"),
    "qwen2_5_vl": save_qwen2_5_vl,
    "qwen2_vl": save_qwen2_vl,
    "qwen3_5": save_qwen3_5,
    "qwen3_vl": save_qwen3_vl,
    "smolvlm": save_smolvlm,
}
ROWS = {row.model_type: row for row in model_types()}
NUM_TOKENS = 5


@pytest.fixture(scope="module", params=ROWS)
def row(request: pytest.FixtureRequest) -> ModelType:
    return ROWS[request.param]


@pytest.fixture(scope="module")
def engine(row: ModelType, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = SAVE[row.model_type](tmp_path_factory.mktemp(row.model_type))
    return Engine.load(ModelSpec(model=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_clip(tmp_path_factory.mktemp("clip"), vision_config()))


@pytest.fixture(scope="module")
def conversations(picture: Picture) -> list[list[Message]]:
    first, second, third = (picture(*size, seed) for seed, size in enumerate([(110, 70), (60, 90), (70, 60)]))
    return [[user_message("What?", first)], [user_message("Compare.", second, third)], [user_message("Who?")]]


def generate(engine: Engine, messages: list[Message]) -> list[int]:
    """What transformers' own generate answers."""
    family = engine.family
    prompt = family.prepare(read_conversation(messages))
    with torch.inference_mode():
        ids = prompt.input_ids[None]
        output = family.model.generate(input_ids=ids, **prompt.pixels, max_new_tokens=NUM_TOKENS, do_sample=False)
    return output[0, len(prompt.input_ids) :].tolist()


def test_every_model_type_is_tested_here() -> None:
    assert list(SAVE) == list(ROWS)


def test_every_model_type_has_published_checkpoints() -> None:
    for family in set(FAMILIES.values()):
        assert set(family.checkpoints) == set(family.model_types)
    names = list(itertools.chain.from_iterable(row.checkpoints for row in ROWS.values()))
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"mini|[\w.-]+/[\w.-]+", name) for name in names)


def test_the_checkpoint_is_of_its_model_type(engine: Engine, row: ModelType) -> None:
    assert type(engine.family) is FAMILIES[row.model_type]


def test_unpruned_as_generate_and_batches_as_singles(
    engine: Engine, row: ModelType, conversations: list[list[Message]]
) -> None:
    assert {"unpruned as generate", "batches as singles"} <= set(row.checked)
    expected = [generate(engine, messages) for messages in conversations]
    generation = Generation(max_tokens=NUM_TOKENS)
    together = engine.batch(conversations, Pruning(keep=1.0), generation)
    assert [answer.token_ids for answer in together] == expected
    pruning = Pruning(keep=0.4)
    pruned = engine.batch(conversations, pruning, generation)
    assert [answer.token_ids for answer in pruned] == [
        engine.chat(messages, pruning, generation).token_ids for messages in conversations
    ]


def test_pruned_as_a_masked_reference(engine: Engine, row: ModelType, conversations: list[list[Message]]) -> None:
    assert "pruned as a masked reference" in row.checked
    messages = conversations[1]
    answer = engine.chat(messages, Pruning(keep=0.4, positions="original"), Generation(max_tokens=NUM_TOKENS))
    assert answer.token_ids == greedy_tokens(engine.family, messages, answer, "original", len(answer.token_ids))


def test_videos_as_generate_or_a_clear_error(engine: Engine, row: ModelType, picture: Picture) -> None:
    messages: list[Message] = [video_message("What happens?", [picture(90, 60, seed) for seed in range(4)], fps=2.0)]
    assert row.videos == ("videos as generate" in row.checked)
    if row.videos:
        answer = engine.chat(messages, Pruning(keep=1.0), Generation(max_tokens=NUM_TOKENS))
        assert answer.token_ids == generate(engine, messages)
    else:
        with pytest.raises(UnsupportedModel, match="does not take videos"):
            engine.chat(messages)


@pytest.mark.parametrize("method", METHODS)
def test_the_methods_that_apply_run_and_the_others_say_why_not(
    engine: Engine, row: ModelType, conversations: list[list[Message]], clip: str, method: str
) -> None:
    options: dict[str, Any] = {"clip": clip} if "clip" in METHODS[method].model_fields else {}
    pruning = Pruning(method=method, keep=0.6, **options)
    if method in row.other_methods:
        with pytest.raises(UnsupportedModel):
            engine.chat(conversations[0], pruning)
        return
    assert method in row.methods
    usage = engine.chat(conversations[0], pruning, Generation(max_tokens=2)).usage
    share = 1 if method == "none" else 0.6
    assert usage.layer_average == pytest.approx(share * usage.visual_tokens, abs=1)


def test_the_command_prints_the_table(tops: Tops) -> None:
    result = tops("models")
    assert result.code == 0
    for row in ROWS.values():
        assert row.model_type in result.out
    assert [ModelType(**row) for row in json.loads(tops("models", "--json").out)] == list(ROWS.values())
