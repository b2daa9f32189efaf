"""Compare SparseVLM with its definition written out: raters, scores, clusters and the published budgets."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.conftest import Picture
from tests.support.layer_tokens import grid_layout, layer_tokens
from tops_engine.budget import layer_average
from tops_engine.conversation.messages import Message, user_message
from tops_engine.engine import Engine
from tops_engine.methods import Positions
from tops_engine.methods.sparsevlm import SparseVLM, num_clusters, text_raters
from tops_engine.settings import Generation, Pruning

RATED = ("text", "previous", "mean")


def plain_raters(similarity: list[list[float]]) -> list[int]:
    """Return text tokens whose share of the softmax over the text, averaged over the image, is above the mean."""
    shares = [[math.exp(value) / sum(map(math.exp, row)) for value in row] for row in similarity]
    means = [sum(column) / len(shares) for column in zip(*shares, strict=True)]
    return [token for token, value in enumerate(means) if value > sum(means) / len(means)]


def plain_clusters(features: list[list[float]], number: int) -> tuple[list[int], list[list[float]]]:
    """Cluster by density peaks: return centres and the means of the tokens nearest to each."""
    size = range(len(features))
    distance = [[math.dist(a, b) / math.sqrt(len(a)) for b in features] for a in features]
    density = [math.exp(-sum(d * d for d in sorted(row)[:number]) / number) for row in distance]
    order = sorted(size, key=lambda token: (-density[token], token))
    separation = [0.0] * len(features)
    for place, token in enumerate(order):
        separation[token] = min((distance[token][other] for other in order[:place]), default=max(map(max, distance)))
    ranking = sorted(size, key=lambda token: (-density[token] * separation[token], token))
    centres = sorted(ranking[:number])
    members: dict[int, list[int]] = {centre: [centre] for centre in centres}
    for token in size:
        if token not in members:
            members[min(centres, key=lambda centre: (distance[token][centre], centre))].append(token)
    means = [
        [
            sum(features[token][axis] for token in members[centre]) / len(members[centre])
            for axis in range(len(features[0]))
        ]
        for centre in centres
    ]
    return centres, means


def random_image(seed: int, num_tokens: int, num_text: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    similarity = 2 * torch.randn(num_tokens + 3, num_text, generator=generator)
    attention = torch.rand(num_text, num_tokens, generator=generator)
    hidden = torch.randn(num_tokens, 6, generator=generator)
    return similarity, attention, hidden


@given(st.integers(2, 90), st.integers(1, 8), st.floats(0, 1), st.integers(0, 10**6))
def test_what_is_kept_and_merged_is_the_definition(num_tokens: int, num_text: int, share: float, seed: int) -> None:
    count = min(max(1, round(share * num_tokens)), num_tokens - 1)
    similarity, attention, hidden = random_image(seed, num_tokens, num_text)
    image = layer_tokens(
        grid_layout(1, num_tokens), hidden_states=hidden, attention={RATED: attention}, text_similarity=similarity
    )

    (selection,) = SparseVLM().select_at_layer([image], [count])

    raters = plain_raters(similarity.tolist()) or list(range(num_text))
    scores = [sum(attention[rater, token].item() for rater in raters) / len(raters) for token in range(num_tokens)]
    order = sorted(range(num_tokens), key=lambda token: -scores[token])
    clusters = num_clusters(num_tokens, count)
    kept, dropped = order[: count - clusters], order[count - clusters :]
    expected = {token: hidden[token].tolist() for token in kept}
    if clusters:
        recycled = sorted(dropped[: int(0.3 * len(dropped)) + 1])
        centres, means = plain_clusters([hidden[token].tolist() for token in recycled], clusters)
        expected |= {recycled[centre]: mean for centre, mean in zip(centres, means, strict=True)}
    assert selection.indices.tolist() == sorted(expected)
    assert len(expected) == count
    features = hidden[selection.indices] if selection.features is None else selection.features
    torch.testing.assert_close(features, torch.tensor([expected[token] for token in sorted(expected)]))
    assert selection.order is not None
    assert selection.order.tolist()[: len(kept)] == kept


def test_equal_tokens_make_clusters_of_the_first_ones() -> None:
    image = layer_tokens(
        grid_layout(1, 40),
        hidden_states=torch.ones(40, 4),
        attention={RATED: torch.ones(2, 40)},
        text_similarity=torch.ones(40, 2),
    )
    (selection,) = SparseVLM().select_at_layer([image], [10])
    # 30 to 31 tokens are dropped, of which 10 make two clusters; all alike, the first ones are kept and centres.
    assert selection.indices.tolist() == list(range(10))
    assert selection.features is not None
    torch.testing.assert_close(selection.features, torch.ones(10, 4))


def test_all_words_rate_when_none_stands_out() -> None:
    assert text_raters(torch.ones(5, 3)).tolist() == [True, True, True]
    assert text_raters(torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 0.5]])).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("budget", "kept", "clusters", "seen"),
    [
        (192, (300, 200, 110), (9, 4, 3), 206.5),
        (128, (303, 110, 36), (9, 7, 3), 145.4),
        (96, (238, 48, 26), (11, 7, 1), 114.1),
        (64, (66, 30, 17), (16, 2, 1), 82.3),
    ],
)
def test_the_published_budgets_and_what_layers_really_see(
    budget: int, kept: tuple[int, ...], clusters: tuple[int, ...], seen: float
) -> None:
    stages = Pruning(method="sparsevlm", schedule=f"sparsevlm/{budget}").stages(576, 32)
    before = 576
    for stage, layer, own, merged in zip(stages, (3, 7, 16), kept, clusters, strict=True):
        assert stage == (layer, own + merged)
        # The official rule for clusters: a tenth of the best 30 % of what is dropped.
        assert merged == int((int(0.3 * (before - own)) + 1) / 10) + 1
        assert num_clusters(before, own + merged) == merged
        before = own + merged
    assert layer_average(stages, 576, 32) == pytest.approx(seen, abs=0.05)


@given(st.integers(2, 90), st.integers(1, 5), st.floats(0.1, 20), st.integers(0, 9), st.integers(1, 90))
def test_the_adaptive_ratio_follows_the_rank_of_the_attention(
    num_tokens: int, num_text: int, scale: float, bias: int, most: int
) -> None:
    """Use raters that each attend to another token: the rank is the number of raters, or of tokens if smaller."""
    attention = torch.cat([torch.eye(num_text, num_tokens) + 0.001, torch.linspace(0, 1, num_tokens)[None]])
    rank = min(num_text, num_tokens)
    hidden = torch.arange(6.0 * num_tokens).view(num_tokens, 6).sin()
    image = layer_tokens(
        grid_layout(1, num_tokens),
        hidden_states=hidden,
        attention={RATED: attention},
        # The last word does not rate.
        text_similarity=torch.tensor([[1.0] * num_text + [-9.0]] * num_tokens),
    )
    most = min(most, num_tokens)

    (selection,) = SparseVLM(rank_scale=scale, rank_bias=bias).select_at_layer([image], [most])

    kept = min(int(scale * rank + bias), num_tokens - 1)
    with_clusters = kept + int((int(0.3 * (num_tokens - kept)) + 1) / 10) + 1
    assert len(selection.indices) == min(with_clusters, most)
    assert sorted(set(selection.indices.tolist())) == selection.indices.tolist()


@pytest.mark.parametrize(("budget", "scale", "bias"), [(192, 13.5, 0), (128, 9, 6), (64, 0.8, 0)])
def test_the_published_adaptive_ratios_keep_at_most_everything_at_their_layers(
    budget: int, scale: float, bias: int
) -> None:
    pruning = Pruning(method="sparsevlm", schedule=f"sparsevlm/{budget}-adaptive")
    assert (pruning.method_instance.rank_scale, pruning.method_instance.rank_bias) == (scale, bias)  # type: ignore[attr-defined]
    for size in (576, 2880):
        assert pruning.stages(size, 32) == ((3, size), (7, size), (16, size), (20, size))


def test_an_answer_reports_what_the_adaptive_ratio_kept(llava_next_engine: Engine, picture: Picture) -> None:
    conversations: list[list[Message]] = [
        [user_message("What?", picture(90, 60))],
        [user_message("What is shown in this picture, and where?", picture(60, 110, 2))],
    ]
    pruning = Pruning(method="sparsevlm", keep=0.9, layers=[2, 5], rank_scale=1.0, rank_bias=1)
    together = llava_next_engine.batch(conversations, pruning, Generation(max_tokens=4))
    for messages, answer in zip(conversations, together, strict=True):
        counts = [stage.visual_tokens[0] for stage in answer.usage.stages]
        assert answer.usage.layer_average == (2 * counts[0] + 3 * counts[1] + 3 * counts[2]) / 8
        assert answer.usage.layer_average < 0.9 * answer.usage.visual_tokens
        assert answer.token_ids == llava_next_engine.chat(messages, pruning, Generation(max_tokens=4)).token_ids


@given(st.integers(2, 3000), st.floats(0, 1))
def test_clusters_follow_the_rule_or_take_half(num_tokens: int, share: float) -> None:
    count = min(max(1, round(share * num_tokens)), num_tokens - 1)
    clusters = num_clusters(num_tokens, count)
    by_rule = int((int(0.3 * (num_tokens - count + clusters)) + 1) / 10) + 1
    assert clusters == min(by_rule, count // 2)


def test_merged_tokens_enter_the_next_layer(llava_next_engine: Engine, picture: Picture) -> None:
    decoder = llava_next_engine.family.decoder
    seen: list[Tensor] = []
    handles = [
        decoder.text_model.layers[index].register_forward_pre_hook(lambda _, args: seen.append(args[0][0].clone()))
        for index in (2, 3)
    ]
    outputs: list[Tensor] = []
    handles.append(decoder.text_model.layers[2].register_forward_hook(lambda *call: outputs.append(call[2][0].clone())))
    pruning = Pruning(method="sparsevlm", keep=0.6, layers=[3])
    answer = llava_next_engine.chat([user_message("What?", picture(90, 60))], pruning, Generation(max_tokens=1))
    for handle in handles:
        handle.remove()
    (_, before), (_, after) = ((layer, kept[0]) for layer, kept in answer.token_map.stages)
    clusters = num_clusters(len(before), len(after))
    assert clusters > 0
    first = seen[1].shape[0] - (seen[0].shape[0] - len(before)) - len(after)
    assert first == 0
    # Rows of the next layer's input that are no row of this one's output are the merged ones.
    known = torch.cdist(seen[1], outputs[0], compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1) < 1e-6
    # A cluster may hold its centre alone; not all can, as more tokens are recycled than make clusters.
    assert 1 <= int((~known).sum()) <= clusters
    assert answer.pruning["positions"] == "contiguous"


@pytest.mark.parametrize("positions", ["contiguous", "original"])
def test_a_batch_of_different_prompts_answers_as_each_alone(
    llava_next_engine: Engine, picture: Picture, positions: Positions
) -> None:
    conversations: list[list[Message]] = [
        [user_message("Compare the two.", picture(60, 60), picture(60, 90, 3))],
        [user_message("What?", picture(110, 70, 1))],
    ]
    pruning = Pruning(method="sparsevlm", keep=0.4, positions=positions)
    together = llava_next_engine.batch(conversations, pruning, Generation(max_tokens=8))
    for messages, answer in zip(conversations, together, strict=True):
        alone = llava_next_engine.chat(messages, pruning, Generation(max_tokens=8))
        assert answer.token_ids == alone.token_ids
        assert answer.usage.layer_average == pytest.approx(0.4 * answer.usage.visual_tokens, abs=1)
