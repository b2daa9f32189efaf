"""Compare CDPruner with determinants computed from scratch."""

import pytest
import torch
from torch import Tensor

from tests.support.visual_tokens import cosine, of_tile, random_tokens
from tops_engine.methods import ClipEmbeddings, VisualTokens
from tops_engine.methods.cdpruner import CDPruner


def best_by_determinant(
    image: VisualTokens, tokens: list[int], relevance: dict[int, float], num_keep: int
) -> list[int]:
    def log_det(chosen: list[int]) -> float:
        kernel = torch.tensor(
            [
                [relevance[i] * cosine(image.features[i], image.features[j]) * relevance[j] for j in chosen]
                for i in chosen
            ],
            dtype=torch.float64,
        )
        return float(torch.logdet(kernel))

    chosen: list[int] = []
    for _ in range(num_keep):
        rest = [token for token in tokens if token not in chosen]
        scores = [log_det([*chosen, token]) for token in rest]
        # A tie goes to the first.
        chosen.append(next(token for token, score in zip(rest, scores, strict=True) if score > max(scores) - 1e-9))
    return chosen


def unit_range(values: dict[int, float]) -> dict[int, float]:
    low, high = min(values.values()), max(values.values())
    return {token: (value - low + 1e-6) / (high - low) for token, value in values.items()}


@pytest.mark.parametrize("text_space", ["clip", "llm"])
@pytest.mark.parametrize(
    ("sizes", "newlines", "counts"), [([14], 0, [5]), ([9, 9, 6], 4, [3, 3, 2])], ids=["one tile", "tiles"]
)
def test_relevant_and_unlike_tokens(sizes: list[int], newlines: int, counts: list[int], text_space: str) -> None:
    image = random_tokens(sizes, newlines, seed=2)
    (selection,) = CDPruner(text_space=text_space).select_visual([image], [sum(counts)])
    tokens = [token for tile in range(1, len(sizes) + 1) for token in of_tile(image, tile)]
    embedded, question = image.clip_embeddings(None), image.question_embeddings().mean(dim=0)
    if text_space == "clip":
        raw = {token: -cosine(embedded.patches[token], embedded.question) for token in tokens}
    else:
        raw = {token: cosine(image.features[token], question) for token in tokens}
    # Brought to one range over the whole picture, then chosen within each tile.
    relevance = unit_range(raw)
    expected: list[int] = []
    for tile, num_keep in enumerate(counts, start=1):
        expected += best_by_determinant(image, of_tile(image, tile), relevance, num_keep)
    assert selection.order is not None
    assert selection.order.tolist() == expected
    assert selection.indices.tolist() == sorted(expected)
    assert selection.features is None


def test_equal_relevance_is_diversity_alone() -> None:
    image = random_tokens([10])
    same = ClipEmbeddings(torch.ones(10, 7), torch.ones(7))
    image = VisualTokens(**vars(image) | {"clip_embeddings": lambda _: same})
    (selection,) = CDPruner().select_visual([image], [4])
    expected = best_by_determinant(image, list(range(10)), dict.fromkeys(range(10), 1.0), 4)
    assert selection.order is not None
    # The first pick is a pure tie.
    assert selection.order.tolist() == expected == [0, *expected[1:]]


def test_identical_tokens_are_used_up_last() -> None:
    image = random_tokens([8])
    features: Tensor = image.features.clone()
    features[1:5] = features[0]
    image = VisualTokens(**vars(image) | {"features": features})
    (selection,) = CDPruner().select_visual([image], [4])
    assert len({0, 1, 2, 3, 4} & set(selection.indices.tolist())) == 1
    (selection,) = CDPruner().select_visual([image], [7])
    assert len(set(selection.indices.tolist())) == 7
