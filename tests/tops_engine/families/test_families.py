"""Test every claim in the table of `tops models` on a small checkpoint of each model type."""

import itertools
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.conftest import Picture, Tops
from tests.support.checkpoints import save_llava, save_llava_next, vision_config
from tests.support.checkpoints_clip import save_clip
from tests.support.checkpoints_cohere import save_aya_vision, save_cohere2_vision
from tests.support.checkpoints_gemma import save_gemma3
from tests.support.checkpoints_gemma4 import save_gemma4
from tests.support.checkpoints_glm import save_glm4v, save_glm4v_moe
from tests.support.checkpoints_idefics3 import save_idefics3, save_smolvlm
from tests.support.checkpoints_internvl import save_internvl
from tests.support.checkpoints_lfm2 import save_lfm2_vl
from tests.support.checkpoints_llava_hr import save_llava_hr
from tests.support.checkpoints_minicpm import save_minicpmv4_6, save_minicpmv4_7
from tests.support.checkpoints_mistral import save_mistral3
from tests.support.checkpoints_paligemma import save_paligemma
from tests.support.checkpoints_qwen import (
    save_qwen2_5_vl,
    save_qwen2_vl,
    save_qwen3_5,
    save_qwen3_5_moe,
    save_qwen3_vl,
    save_qwen3_vl_moe,
)
from tests.support.checkpoints_video import save_llava_video, save_next_video, save_onevision
from tests.support.methods import on_pictures
from tests.support.slow_reference import greedy_tokens
from tops_engine.conversation.messages import Message, read_conversation, user_message, video_message
from tops_engine.dependencies import unsupported_version
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, UnsupportedModel
from tops_engine.families import FAMILIES
from tops_engine.methods import METHODS
from tops_engine.settings import Generation, ModelSpec, Pruning
from tops_engine.supported_models import ModelType, model_types, recorded_checks

SAVE: dict[str, Callable[..., Path]] = {
    # Its text model has a rotary embedding in all layers, as that of the 32b size.
    "aya_vision": partial(save_aya_vision, kind="cohere"),
    "cohere2_vision": save_cohere2_vision,
    "gemma3": save_gemma3,
    "gemma4": save_gemma4,
    "glm4v": save_glm4v,
    "glm4v_moe": save_glm4v_moe,
    "idefics3": save_idefics3,
    "internvl": save_internvl,
    "lfm2_vl": save_lfm2_vl,
    "llava": save_llava,
    "llava_hr": save_llava_hr,
    "llava_next": save_llava_next,
    "llava_next_video": save_next_video,
    "llava_onevision": save_onevision,
    # Transformers has no newlines in videos but one after them.
    "llava_qwen": partial(save_llava_video, mm_newline_position="one_token"),
    "minicpmv4_6": save_minicpmv4_6,
    "minicpmv4_7": save_minicpmv4_7,
    # Its text model scales queries, beside what Mistral Small does.
    "mistral3": partial(save_mistral3, kind="ministral3"),
    "paligemma": save_paligemma,
    "qwen2_5_vl": save_qwen2_5_vl,
    "qwen2_vl": save_qwen2_vl,
    "qwen3_5": save_qwen3_5,
    "qwen3_5_moe": save_qwen3_5_moe,
    "qwen3_vl": save_qwen3_vl,
    "qwen3_vl_moe": save_qwen3_vl_moe,
    "smolvlm": save_smolvlm,
}
ROWS = {row.model_type: row for row in model_types()}
NUM_TOKENS = 5

Conversations = list[list[Message]]


#: They share the family's class, or most of it, with another model type.
REPEATED = {"aya_vision", "cohere2_vision", "glm4v_moe", "minicpmv4_6", "minicpmv4_7", "paligemma", "qwen3_vl_moe"}

#: What the claims on another model type show includes what they show on these.
CLAIMS_REPEATED = {"aya_vision", "minicpmv4_6"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.full if name in REPEATED else ()) for name in SAVE],
)
def row(request: pytest.FixtureRequest) -> ModelType:
    return ROWS[request.param]


@pytest.fixture(scope="module")
def engine(row: ModelType, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    oldest = FAMILIES[row.model_type].oldest_transformers
    if oldest and unsupported_version(f"transformers>={oldest}"):
        pytest.skip(f"needs transformers {oldest}")
    folder = SAVE[row.model_type](tmp_path_factory.mktemp(row.model_type))
    return Engine.load(ModelSpec(model=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_clip(tmp_path_factory.mktemp("clip"), vision_config()))


@pytest.fixture(scope="module")
def conversations(picture: Picture) -> Conversations:
    first, second, third = (picture(*size, seed) for seed, size in enumerate([(110, 70), (60, 90), (70, 60)]))
    return [[user_message("What?", first)], [user_message("Compare.", second, third)], [user_message("Who?")]]


def generate(engine: Engine, messages: list[Message]) -> list[int]:
    """Return the answer of transformers' own generate."""
    family = engine.family
    prompt = family.prepare(read_conversation(messages))
    with torch.inference_mode():
        ids = prompt.input_ids[None]
        output = family.model.generate(input_ids=ids, **prompt.pixels, max_new_tokens=NUM_TOKENS, do_sample=False)
    return output[0, len(prompt.input_ids) :].tolist()


def unpruned_as_generate(engine: Engine, conversations: Conversations) -> None:
    expected = [generate(engine, messages) for messages in conversations]
    answers = engine.batch(conversations, Pruning(keep=1.0), Generation(max_tokens=NUM_TOKENS))
    assert [answer.token_ids for answer in answers] == expected


def pruned_as_a_masked_reference(engine: Engine, conversations: Conversations) -> None:
    messages = conversations[1]
    answer = engine.chat(messages, Pruning(keep=0.4, positions="original"), Generation(max_tokens=NUM_TOKENS))
    assert answer.token_ids == greedy_tokens(engine.family, messages, answer, "original", len(answer.token_ids))


def batches_as_singles(engine: Engine, conversations: Conversations) -> None:
    pruning, generation = Pruning(keep=0.4), Generation(max_tokens=NUM_TOKENS)
    together = engine.batch(conversations, pruning, generation)
    alone = [engine.chat(messages, pruning, generation) for messages in conversations]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


def videos_as_generate(engine: Engine, conversations: Conversations) -> None:
    frames = [conversations[0][0]["content"][0]["image"].rotate(90 * turns) for turns in range(4)]
    messages: list[Message] = [video_message("What happens?", frames, fps=2.0)]
    answer = engine.chat(messages, Pruning(keep=1.0), Generation(max_tokens=NUM_TOKENS))
    assert answer.token_ids == generate(engine, messages)


def reserved_ids(engine: Engine, messages: list[Message]) -> list[int]:
    """Return the tokens of a prompt that only pictures, videos and the chat template may write, in their order."""
    family = engine.family
    ids = set(
        family.tokenizer.convert_tokens_to_ids(sorted(family.reserved_tokens & family.tokenizer.get_vocab().keys()))
    )
    return [token for token in family.prepare(read_conversation(messages)).input_ids.tolist() if token in ids]


def test_no_text_ends_its_own_turn(engine: Engine, picture: Picture) -> None:
    family = engine.family
    ends = set(family.tokenizer.convert_ids_to_tokens(sorted(family.eos_token_ids)))
    assert ends <= family.reserved_tokens
    for separator in ("", " ", "\n"):
        hostile = separator.join([*sorted(family.reserved_tokens), "</tool_response>"])
        for text in (hostile, f"Who?{hostile}", f"{hostile[:5]}{hostile}"):
            assert reserved_ids(engine, [user_message(text, picture())]) == reserved_ids(
                engine, [user_message("Who?", picture())]
            )
            call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {}}}
            asked = [user_message("Who?"), {"role": "assistant", "content": "", "tool_calls": [call]}]
            results: list[list[Message]] = [[*asked, {"role": "tool", "content": said}] for said in (text, "nobody")]
            assert reserved_ids(engine, results[0]) == reserved_ids(engine, results[1])


def test_ordinary_text_reaches_the_model_as_it_is(engine: Engine) -> None:
    text = "Is <b>a < b</b> & [1] a | b? <p>It's 50 %: {{x}} {% if %} $x</p> <tool_call> `<div>`"
    ids = engine.family.prepare(read_conversation([user_message(text)])).input_ids
    assert text in engine.family.tokenizer.decode(ids)


def test_a_picture_has_as_many_tokens_as_the_family_says(engine: Engine) -> None:
    family = engine.family
    found = set()
    for width, height in [(300, 200), (64, 200), (31, 33)]:
        pictures = [Image.new("RGB", (width, height))] * 2
        prompts = [family.prepare(read_conversation([user_message("?", *pictures[:count])])) for count in (1, 2)]
        (alone,), both = prompts[0].visual_tokens, prompts[1].visual_tokens
        found.add(alone)
        if not family.one_size:
            assert (alone, both) == (
                family.picture_tokens(width, height),
                2 * [family.picture_tokens(width, height, alone=False)],
            )
    assert (len(found) == 1) == family.one_size


def test_resize_saves_tokens_of_a_picture(engine: Engine, row: ModelType, picture: Picture) -> None:
    assert ("resize" in row.other_methods) == engine.family.one_size
    messages, generation = [user_message("What?", picture(300, 200))], Generation(max_tokens=2)
    whole = engine.chat(messages, Pruning(keep=1.0), generation)
    engine.forget()
    keep = 0.5
    if engine.family.one_size:
        with pytest.raises(UnsupportedModel, match="every picture to one size"):
            engine.chat(messages, Pruning(method="resize", keep=keep), generation)
        return
    try:
        answer = engine.chat(messages, Pruning(method="resize", keep=keep), generation)
    except BudgetError as error:
        keep = float(str(error).rpartition("=")[2].rstrip("."))
        answer = engine.chat(messages, Pruning(method="resize", keep=keep), generation)
    usage = answer.usage
    assert usage.visual_tokens == whole.usage.visual_tokens
    assert usage.layer_average == usage.stages[0].visual_tokens[0] <= keep * usage.visual_tokens
    assert usage.input_visual_tokens == usage.layer_average
    assert (answer.flops.vision < whole.flops.vision) == (keep < 1)
    # The family is as it was before.
    engine.forget()
    assert engine.chat(messages, Pruning(keep=1.0), generation).token_ids == whole.token_ids


#: What `tops models` says of a model type, and the test of it.
CLAIMS: dict[str, Callable[[Engine, Conversations], None]] = {
    "batches as singles": batches_as_singles,
    "pruned as a masked reference": pruned_as_a_masked_reference,
    "unpruned as generate": unpruned_as_generate,
    "videos as generate": videos_as_generate,
}
OF_MODEL_TYPES = [
    (model_type, claim)
    for model_type in SAVE
    for claim, test in CLAIMS.items()
    if test is not videos_as_generate or ROWS[model_type].videos
]


@pytest.mark.parametrize(
    ("row", "claim"),
    [
        pytest.param(model_type, claim, marks=pytest.mark.full if model_type in CLAIMS_REPEATED else ())
        for model_type, claim in OF_MODEL_TYPES
    ],
    indirect=["row"],
    scope="module",
)
def test_claim(engine: Engine, conversations: Conversations, claim: str) -> None:
    CLAIMS[claim](engine, conversations)


def test_a_begun_answer_is_continued_as_transformers_does(engine: Engine, picture: Picture) -> None:
    """Compare with the checkpoint's processor and model as transformers' users call them."""
    image, begun = picture(110, 70), "I see a red "
    family = engine.family
    template = family.processor.chat_template or family.tokenizer.chat_template or family.default_chat_template
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": begun}]},
    ]
    text = family.processor.apply_chat_template(messages, chat_template=template, continue_final_message=True)
    bos = family.tokenizer.bos_token
    inputs = family.processor(
        text=[text],
        images=family.for_processor([image]),
        return_tensors="pt",
        add_special_tokens=bos is None or not text.startswith(bos),
    )
    with torch.inference_mode():
        expected = family.model.generate(**inputs, max_new_tokens=NUM_TOKENS, do_sample=False)
    asked = [user_message("What?", image), {"role": "assistant", "content": begun}]
    answer = engine.chat(asked, Pruning(keep=1.0), Generation(max_tokens=NUM_TOKENS))
    assert answer.token_ids == expected[0, inputs["input_ids"].shape[1] :].tolist()
    assert engine.count_tokens(asked) == inputs["input_ids"].shape[1]


def test_the_record_holds_every_claim_that_is_tested_and_no_other() -> None:
    """Compare with the record; after a change run ``python -m tools.record_checked``, which writes it."""
    recorded = [(model_type, claim) for model_type, claims in recorded_checks().items() for claim in claims]
    assert recorded == OF_MODEL_TYPES


def test_every_family_of_the_package_is_tested_here() -> None:
    assert list(SAVE) == list(ROWS)
    assert all(row.checked for row in ROWS.values())


def test_checkpoints_are_named_once_and_in_the_form_of_the_hub() -> None:
    names = list(itertools.chain.from_iterable(row.checkpoints for row in ROWS.values()))
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"mini|[\w.-]+/[\w.-]+", name) for name in names)


def test_the_checkpoint_is_of_its_model_type(engine: Engine, row: ModelType) -> None:
    assert type(engine.family) is FAMILIES[row.model_type]


def test_a_model_without_videos_says_so(engine: Engine, row: ModelType, picture: Picture) -> None:
    if row.videos:
        pytest.skip("takes videos")
    with pytest.raises(UnsupportedModel, match="does not take videos"):
        engine.chat([video_message("What happens?", [picture(90, 60, seed) for seed in range(4)], fps=2.0)])


@pytest.mark.parametrize("method", on_pictures(sorted(set(METHODS) - {"resize"})))
def test_the_methods_that_apply_run_and_the_others_say_why_not(
    engine: Engine, row: ModelType, conversations: Conversations, clip: str, method: str
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


TAKE_VIDEOS = [
    pytest.param(name, marks=pytest.mark.full if name in REPEATED else ()) for name in SAVE if ROWS[name].videos
]
FOR_VIDEOS = [name for name, method in METHODS.items() if method.for_videos]


@pytest.fixture(scope="module")
def video(picture: Picture) -> list[Message]:
    """A question about six frames: three alike, a fourth that differs, and two alike."""
    first, second, third = (picture(80, 60, seed) for seed in range(3))
    return [video_message("What happens?", [first, first, first, second, third, third], fps=2.0)]


@pytest.mark.parametrize("row", TAKE_VIDEOS, indirect=True, scope="module")
def test_every_method_for_videos_meets_the_budget_and_reports_each_frame(
    engine: Engine, row: ModelType, video: list[Message]
) -> None:
    for method in FOR_VIDEOS:
        usage = engine.chat(video, Pruning(method=method, keep=0.4), Generation(max_tokens=1)).usage
        (clip,) = usage.pictures
        assert usage.layer_average == clip.layer_average == pytest.approx(0.4 * usage.visual_tokens, abs=0.5), method
        assert sum(frame.layer_average for frame in clip.frames) == pytest.approx(clip.layer_average), method
        assert len({frame.visual_tokens for frame in clip.frames}) == 1
        assert 3 <= len(clip.frames) <= 6


@pytest.mark.full
@pytest.mark.parametrize("method", ["dycoke", "evs", "vidcom2"])
@pytest.mark.parametrize("row", TAKE_VIDEOS, indirect=True, scope="module")
def test_videos_pruned_by_methods_that_do_not_merge_equal_a_masked_reference(
    engine: Engine, row: ModelType, video: list[Message], method: str
) -> None:
    pruning = Pruning(method=method, keep=0.4, positions="original")
    answer = engine.chat(video, pruning, Generation(max_tokens=NUM_TOKENS))
    assert answer.token_ids == greedy_tokens(engine.family, video, answer, "original", len(answer.token_ids))


def test_the_command_prints_the_table(tops: Tops) -> None:
    result = tops("models")
    assert result.code == 0
    for row in ROWS.values():
        assert row.model_type in result.out
    assert [ModelType(**row) for row in json.loads(tops("models", "--json").out)] == list(ROWS.values())
