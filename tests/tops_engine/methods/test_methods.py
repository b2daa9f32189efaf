"""Test the properties of every pruning method, and how a new one is added."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import Picture
from tests.support.methods import marked_full, on_pictures
from tests.support.usage import token_counts
from tops_engine.budget import Keep, Stage, layer_average
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, TopsError
from tops_engine.media.layout import VisualLayout, grid_boxes
from tops_engine.methods import METHODS, Method, Selection, VisualTokens
from tops_engine.methods.random import Random
from tops_engine.methods.tops import TOPS, rater_relevance
from tops_engine.settings import Generation, Pruning

#: Those that choose tokens.
PRUNING_METHODS = sorted(set(METHODS) - {"none", "resize"})


@pytest.fixture(params=["llava_engine", "llava_next_engine"])
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.getfixturevalue(request.param)
    chosen.forget()
    return chosen


def affordable(method: str, keep: Keep, num_visual_tokens: int, num_layers: int) -> Keep:
    """Return ``keep``, or the least that the error message offers if the method prunes too late to meet it."""
    try:
        Pruning(method=method, keep=keep).stages(num_visual_tokens, num_layers)
    except BudgetError as error:
        return float(str(error).rpartition(" ")[2].rstrip("."))
    return keep


@pytest.mark.parametrize("method", marked_full(PRUNING_METHODS))
@pytest.mark.parametrize("keep", [0.25, 0.5, 0.9, 5])
def test_a_method_meets_its_budget_and_reports_it(engine: Engine, picture: Picture, method: str, keep: Keep) -> None:
    messages = [user_message("What?", picture(90, 60), picture(60, 60, 1))]
    spans = engine.family.prepare(read_conversation(messages)).spans
    for span in spans:
        keep = affordable(method, keep, span.layout.num_tokens, engine.family.decoder.num_layers)
    usage = engine.chat(messages, Pruning(method=method, keep=keep), Generation(max_tokens=1)).usage
    images = usage.stages[0].visual_tokens
    target = keep * usage.visual_tokens if isinstance(keep, float) else keep * len(images)
    # Each picture's average is met to half a token of its shortest stage's share.
    assert usage.layer_average == pytest.approx(target, abs=0.5 * len(images))
    counts = [sum(stage.visual_tokens) for stage in usage.stages]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_keeping_everything_changes_nothing(engine: Engine, picture: Picture, method: str) -> None:
    messages = [user_message("What?", picture(90, 60))]
    generation = Generation(max_tokens=6)
    expected = engine.chat(messages, Pruning(method="none"), generation)
    engine.forget()
    answer = engine.chat(messages, Pruning(method=method, keep=1.0), generation)
    assert answer.token_ids == expected.token_ids
    # The second of two questions about a picture may find its beginning read already.
    # Reuse depends on what was asked before.
    assert token_counts(answer) | {"reused_tokens": 0} == token_counts(expected) | {"reused_tokens": 0}


@pytest.mark.parametrize("method", on_pictures(PRUNING_METHODS))
def test_a_selection_repeats(engine: Engine, picture: Picture, method: str) -> None:
    messages = [user_message("What?", picture(90, 60))]
    runs = []
    for _ in range(2):
        engine.forget()
        runs.append(engine.chat(messages, Pruning(method=method, keep=0.3), Generation(max_tokens=4)))
    kept = [[indices.tolist() for _, images in run.token_map.stages for indices in images] for run in runs]
    assert kept[0] == kept[1]
    assert runs[0].token_ids == runs[1].token_ids


def test_random_seeds_differ(llava_engine: Engine, picture: Picture) -> None:
    messages = [user_message("What?", picture(90, 60))]

    def kept(seed: int) -> list[int]:
        pruning = Pruning(method="random", keep=0.5, selection_seed=seed)
        return llava_engine.chat(messages, pruning, Generation(max_tokens=1)).token_map.stages[0][1][0].tolist()

    assert kept(0) == kept(0) != kept(1)


def test_random_choice_is_uniform() -> None:
    image = VisualTokens(
        torch.zeros(12, 1),
        VisualLayout(grid_boxes(3, 4), torch.zeros(12).long(), ((3, 4),)),
        encoder_features=lambda: torch.ones(12, 1),
        vision_attention=lambda: torch.ones(12),
    )
    counts = torch.zeros(12)
    for seed in range(600):
        (selection,) = Random(selection_seed=seed).select_visual([image], [3])
        counts[selection.indices] += 1
    # Each token is expected 150 times; four standard deviations are 42.
    assert (counts - 150).abs().max() < 42


def test_dynamic_raters_are_the_rows_above_the_mean() -> None:
    attention = torch.tensor([[0.1, 0.1, 0.0], [0.3, 0.1, 0.2], [0.0, 0.4, 0.3], [0.1, 0.0, 0.0]])
    # Row masses 0.2, 0.6, 0.7, 0.1 with mean 0.4: the second and third rate.
    torch.testing.assert_close(rater_relevance(attention, "dynamic"), torch.tensor([0.15, 0.25, 0.25]))
    torch.testing.assert_close(rater_relevance(attention, "last"), attention[-1])
    torch.testing.assert_close(rater_relevance(attention, "all"), torch.tensor([0.125, 0.15, 0.125]))


def test_all_raters_rate_when_none_is_above_the_mean() -> None:
    attention = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    torch.testing.assert_close(rater_relevance(attention, "dynamic"), torch.tensor([0.25, 0.25]))


def test_tops_options_change_the_choice(llava_next_engine: Engine, picture: Picture) -> None:
    messages = [user_message("What?", picture(90, 60))]

    def kept(**options: Any) -> list[int]:
        pruning = Pruning(keep=0.3, **options)
        return llava_next_engine.chat(messages, pruning, Generation(max_tokens=1)).token_map.stages[-1][1][0].tolist()

    variants: list[dict[str, Any]] = [
        {},
        {"criteria": "relevance"},
        {"criteria": "diversity"},
        {"criteria": "coverage"},
        {"normalization": "minmax"},
        {"lambda": 10.0},
    ]
    assert len({tuple(kept(**options)) for options in variants}) == len(variants)


def test_relevance_alone_keeps_the_most_attended_patches(llava_engine: Engine, picture: Picture) -> None:
    family = llava_engine.family
    messages = [user_message("What?", picture(60, 60))]
    prompt = family.prepare(read_conversation(messages))
    ((tokens,),) = family.encode([prompt])
    expected = tokens.vision_attention().topk(8).indices.sort().values
    pruning = Pruning(keep=0.5, criteria="relevance", schedule=None)
    (_, kept), *_ = llava_engine.chat(messages, pruning, Generation(max_tokens=1)).token_map.stages
    # Half of the budget's shape: twice 8 tokens before the LLM would be all 16, so look at a direct selection.
    (selection,) = TOPS(criteria=frozenset({"relevance"})).select_visual([tokens], [8])
    assert selection.indices.tolist() == expected.tolist()
    assert len(kept[0]) == 16


@pytest.fixture
def merging_method() -> Iterator[type[Method]]:
    """Define a method outside the package that keeps the first tokens, each replaced by the mean of all."""

    class Mean(Method):
        """A method that keeps the first tokens with the mean of all features."""

        name = "mean-of-all"
        source = "this test"

        def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
            return (Stage(0, 2), Stage(4, 1))

        def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
            return [
                Selection(torch.arange(k), features=image.features.mean(dim=0).expand(k, -1))
                for image, k in zip(images, counts, strict=True)
            ]

        def select_at_layer(self, images: Sequence[object], counts: Sequence[int]) -> list[Selection]:
            return [Selection(torch.arange(k)) for k in counts]

    yield Mean
    METHODS.remove("mean-of-all")


def test_a_method_may_merge_tokens(
    llava_engine: Engine, picture: Picture, merging_method: type[Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = llava_engine.family.decoder
    seen: list[Tensor] = []
    handle = decoder.text_model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    messages = [user_message("What?", picture(60, 60))]
    answer = llava_engine.chat(messages, Pruning(method="mean-of-all"), Generation(max_tokens=1))
    handle.remove()
    assert [stage.visual_tokens for stage in answer.usage.stages] == [[2], [1]]
    assert answer.usage.layer_average == layer_average((Stage(0, 2), Stage(4, 1)), 16, 8) == 1.5
    prompt = llava_engine.family.prepare(read_conversation(messages))
    (features,) = llava_engine.family.project([prompt])
    first = int(prompt.spans[0].positions[0])
    for slot in (first, first + 1):
        torch.testing.assert_close(seen[0][0, slot], features.mean(dim=0), atol=1e-5, rtol=1e-5)


def test_a_method_that_keeps_the_wrong_number_is_caught(
    llava_engine: Engine, picture: Picture, merging_method: type[Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging_method, "select_visual", lambda *_: [Selection(torch.arange(3))])
    with pytest.raises(TopsError, match="asked for 2 tokens and chose 3"):
        llava_engine.chat([user_message("What?", picture())], Pruning(method="mean-of-all"))
