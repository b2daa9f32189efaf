"""Test `resize`: which picture the model gets, what is reported, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Picture
from tests.support.checkpoints import save_llava_next
from tests.support.checkpoints_gemma4 import save_gemma4
from tests.support.checkpoints_idefics3 import save_smolvlm
from tests.support.checkpoints_internvl import save_internvl
from tests.support.checkpoints_lfm2 import save_lfm2_vl
from tests.support.checkpoints_mistral import save_mistral3
from tests.support.checkpoints_qwen import save_qwen2_vl
from tops_engine.conversation.messages import Conversation, read_conversation, user_message, video_message
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, InvalidInput, UnsupportedModel
from tops_engine.generation.resizing import prepare_resized
from tops_engine.media.bounds import scaled_size
from tops_engine.mini import mini_path
from tops_engine.settings import Generation, ModelSpec, Pruning

GENERATION = Generation(max_tokens=4)

#: Families in which the picture decides how many tokens there are.
SCALED: dict[str, Callable[[Path], Path]] = {
    "lfm2_vl": save_lfm2_vl,
    "llava_next": save_llava_next,
    "mistral3": save_mistral3,
    "qwen2_vl": save_qwen2_vl,
}
#: Families in which the settings decide, and the number of tokens with each of them, of a picture of 300 x 200.
SET: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "gemma4": (save_gemma4, {"min_pixels": 280 * 36**2}),
    "internvl": (save_internvl, {}),
    "smolvlm": (save_smolvlm, {}),
}


def load(save: Callable[[Path], Path], folder: Path, **options: Any) -> Engine:
    return Engine.load(ModelSpec(model=str(save(folder)), device="cpu", **options))


def asked(*pictures: Image.Image, **options: Any) -> Conversation:
    return read_conversation([user_message("What?", *pictures, **options)])


def resized(keep: float, **options: Any) -> Pruning:
    return Pruning(method="resize", keep=keep, **options)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load(save_qwen2_vl, tmp_path_factory.mktemp("qwen2_vl"))


@pytest.mark.parametrize("name", SCALED)
def test_the_largest_scaled_picture_within_the_budget_is_taken(tmp_path: Path, picture: Picture, name: str) -> None:
    family = load(SCALED[name], tmp_path).family
    image = picture(300, 200)
    (whole,) = family.prepare(asked(image)).visual_tokens
    with family.other_bounds(1, None):
        sizes = {scaled_size(300, 200, None, pixels) for pixels in range(1, 300 * 200, 50)} | {(300, 200)}
        counts = {size: family.picture_tokens(*size) for size in sizes}
    for keep in (0.99, 0.7, 0.5, 0.2):
        fitting = [count for count in counts.values() if count <= keep * whole]
        if not fitting:
            with pytest.raises(
                BudgetError, match=f"has {min(counts.values())} visual tokens, and the whole one {whole}"
            ):
                prepare_resized(family, asked(image), keep)
            continue
        prompt = prepare_resized(family, asked(image), keep)
        assert prompt.visual_tokens == [whole]
        assert prompt.spans[0].layout.num_tokens >= max(fitting)
        assert prompt.spans[0].layout.num_tokens <= keep * whole
        # Boxes in answers are those of the whole picture.
        assert prompt.sizes == [(300, 200)] != [prompt.images[0].size]


@pytest.mark.parametrize("name", SET)
def test_the_finest_setting_within_the_budget_is_taken(tmp_path: Path, picture: Picture, name: str) -> None:
    save, options = SET[name]
    family = load(save, tmp_path, **options).family
    image = picture(300, 200)
    (whole,) = family.prepare(asked(image)).visual_tokens
    pixels = family.pixel_counts()
    assert pixels is not None
    counts = []
    for most in pixels:
        with family.other_bounds(None, most):
            counts.append(family.prepare(asked(image)).spans[0].layout.num_tokens)
    assert len(set(counts)) > 2
    for keep in (0.99, 0.6, 0.3):
        prompt = prepare_resized(family, asked(image), keep)
        assert prompt.spans[0].layout.num_tokens == max(count for count in counts if count <= keep * whole)
        # The picture itself is not scaled before the processor sees it.
        assert prompt.images[0].size == (300, 200)


def test_the_answer_is_that_about_the_smaller_picture(qwen: Engine, picture: Picture) -> None:
    messages = [user_message("What?", picture(160, 100))]
    answer = qwen.chat(messages, resized(0.5), GENERATION)
    (shown,) = answer.token_map.visuals
    assert isinstance(shown, Image.Image)
    assert shown.size < (160, 100)
    alone = qwen.chat([user_message("What?", shown)], Pruning(keep=1.0), GENERATION)
    assert answer.token_ids == alone.token_ids
    assert answer.usage.layer_average == alone.usage.visual_tokens


def test_the_fewer_tiles_are_those_of_a_bounded_model(tmp_path: Path, picture: Picture) -> None:
    folder = save_internvl(tmp_path)
    messages = [user_message("What?", picture(160, 100))]
    engine = Engine.load(ModelSpec(model=str(folder), device="cpu"))
    answer = engine.chat(messages, resized(0.5), GENERATION)
    bounded = Engine.load(ModelSpec(model=str(folder), device="cpu", max_pixels=2 * 56 * 56))
    expected = bounded.chat(messages, Pruning(keep=1.0), GENERATION)
    assert answer.usage.layer_average == expected.usage.visual_tokens == 12
    assert answer.token_ids == expected.token_ids


def test_each_picture_has_its_own_budget(qwen: Engine, picture: Picture) -> None:
    pictures = [picture(160, 100), picture(100, 160, 1), picture(160, 160, 2)]
    answer = qwen.chat([user_message("What?", *pictures, keep=[1.0, 6, 0.5])], resized(0.3), GENERATION)
    whole = [qwen.family.picture_tokens(*one.size) for one in pictures]
    counts = [(one.visual_tokens, one.layer_average) for one in answer.usage.pictures]
    assert [visual for visual, _ in counts] == whole
    assert counts[0][1] == whole[0]
    assert [kept <= budget for (_, kept), budget in zip(counts[1:], (6, whole[2] / 2), strict=True)] == [True, True]


def test_prompts_of_a_batch_are_resized_each_by_itself(qwen: Engine, picture: Picture) -> None:
    conversations = [[user_message("What?", picture(160, 100))], [user_message("Who?", picture(60, 150, 1))]]
    together = qwen.batch(conversations, resized(0.4), GENERATION)
    for messages, answer in zip(conversations, together, strict=True):
        qwen.forget()
        assert qwen.chat(messages, resized(0.4), GENERATION).token_ids == answer.token_ids


def test_prepared_prompts_are_prepared_again(qwen: Engine, picture: Picture) -> None:
    messages = [user_message("What?", picture(160, 100))]
    prepared = qwen.prepare([messages])
    (scored,) = qwen.scored_batch(prepared, resized(0.4), GENERATION)
    assert scored.answer.token_ids == qwen.chat(messages, resized(0.4), GENERATION).token_ids
    (whole,) = qwen.scored_batch(prepared, Pruning(keep=1.0), GENERATION)
    assert whole.answer.usage.layer_average == whole.answer.usage.visual_tokens


def test_flops_are_those_that_ran_tower_included(qwen: Engine, picture: Picture) -> None:
    messages = [user_message("What?", picture(160, 100))]
    qwen.forget()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = qwen.chat(messages, resized(0.5), Generation(max_tokens=1))
    assert answer.flops.total == counter.get_total_flops()
    qwen.forget()
    whole = qwen.chat(messages, Pruning(keep=1.0), Generation(max_tokens=1))
    assert answer.flops.vision < whole.flops.vision
    # The text is the same, and only visual tokens are missing.
    assert (
        whole.usage.input_tokens - answer.usage.input_tokens == whole.usage.visual_tokens - answer.usage.layer_average
    )
    assert answer.usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_second_question_about_the_smaller_picture_is_read_from_the_picture_on(
    qwen: Engine, picture: Picture
) -> None:
    qwen.forget()
    first, second = ([user_message(text, picture(160, 100))] for text in ("What is it?", "What is this?"))
    qwen.chat(first, resized(0.5), GENERATION)
    again = qwen.chat(second, resized(0.5), GENERATION)
    assert again.usage.reused_tokens > 0
    assert again.flops.vision == 0
    assert qwen.chat(second, resized(0.3), GENERATION).flops.vision > 0


def test_a_video_is_refused(qwen: Engine, picture: Picture) -> None:
    frames = [picture(60, 60, seed) for seed in range(4)]
    with pytest.raises(UnsupportedModel, match="not videos; choose another method"):
        qwen.chat([video_message("What?", frames, fps=2.0)], resized(0.5), GENERATION)


def test_a_budget_below_the_smallest_picture_names_the_least(tmp_path: Path, picture: Picture) -> None:
    engine = load(save_llava_next, tmp_path)
    messages = [user_message("What?", picture(300, 200))]
    with pytest.raises(BudgetError, match=r"The smallest picture .* use at least keep=") as caught:
        engine.chat(messages, resized(0.1), GENERATION)
    least = float(str(caught.value).rpartition("=")[2].rstrip("."))
    assert engine.chat(messages, resized(least), GENERATION).usage.kept_fraction <= least


def test_settings_that_choose_tokens_do_not_go_with_it() -> None:
    for options in ({"merge": True}, {"schedule": "0:4"}, {"allocation": "coverage"}):
        with pytest.raises(InvalidInput, match="resize"):
            Pruning(method="resize", **options)
    for name in ("resize+fastv", "tops+resize"):
        with pytest.raises(InvalidInput, match="does not prune"):
            Pruning(method=name)


@pytest.fixture(scope="module")
def mini() -> Engine:
    return Engine.load(ModelSpec(model=str(mini_path()), device="cpu"))


def test_nothing_is_saved_and_the_report_says_so(mini: Engine, picture: Picture) -> None:
    messages = [user_message("What?", picture(200, 120))]
    answer = mini.chat(messages, resized(0.25, enlarge=True), GENERATION)
    assert answer.usage.layer_average == answer.usage.visual_tokens
    assert answer.pruning["enlarge"] is True


@pytest.mark.parametrize("size", [(60, 60), (500, 300), (300, 500)])
def test_the_picture_holds_the_pixels_of_the_budget(mini: Engine, picture: Picture, size: tuple[int, int]) -> None:
    """The tower sees a crop or a padded square; the budget is a share of the pixels that it sees."""
    image = picture(*size)
    family = mini.family
    (whole,), keep = family.prepare(asked(image)).visual_tokens, 0.25
    (shown,) = prepare_resized(family, asked(image), keep, enlarge=True).images
    assert shown.size == size
    area = family.prepare(asked(image)).spans[0].layout.boxes
    side = family.prepare(asked(image)).pixels["pixel_values"].shape[-1]
    width = min(size[0], side / float(area[:, 2].max() - area[:, 0].min()))
    height = min(size[1], side / float(area[:, 3].max() - area[:, 1].min()))
    small = image.resize((round(width / 2), round(height / 2)), Image.Resampling.BICUBIC)
    assert shown.tobytes() == small.resize(size, Image.Resampling.BICUBIC).tobytes()
    assert round(keep * whole) == round(whole / 4)


def test_the_whole_budget_is_the_picture_itself(mini: Engine, picture: Picture) -> None:
    image = picture(200, 120)
    (shown,) = prepare_resized(mini.family, asked(image), 1.0, enlarge=True).images
    assert shown.tobytes() == image.tobytes()
    assert torch.equal(
        mini.family.prepare(asked(image)).pixels["pixel_values"],
        prepare_resized(mini.family, asked(image), 10**6, enlarge=True).pixels["pixel_values"],
    )


def test_other_models_refuse_it(qwen: Engine, picture: Picture) -> None:
    with pytest.raises(UnsupportedModel, match="takes smaller pictures"):
        qwen.chat([user_message("?", picture(160, 100))], resized(0.5, enlarge=True), GENERATION)
