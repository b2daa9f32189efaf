"""Compare MMTok with the method written out token by token."""

import pytest
import torch

from tests.support.visual_tokens import cosine, of_tile, random_tokens
from tops_engine.methods import VisualTokens
from tops_engine.methods.mmtok import MMTok


def softmax(values: list[float], temperature: float) -> list[float]:
    return (torch.tensor(values, dtype=torch.float64) / temperature).softmax(dim=0).tolist()


def covering_patches(image: VisualTokens, tile: int, num_keep: int, patch_weight: float) -> list[int]:
    """Return the kept tokens of a tile in the order of their choice."""
    tokens, words, vision = of_tile(image, tile), image.question_embeddings(), image.encoder_features()
    rows = [
        [part / len(words) for part in softmax([cosine(word, image.features[t]) for t in tokens], 0.02)]
        for word in words
    ]
    for patch in tokens:
        covered = softmax([cosine(vision[patch], vision[token]) for token in tokens], 0.2)
        rows.append([patch_weight * part / len(tokens) for part in covered])
    best = [0.0] * len(rows)
    order: list[int] = []
    for _ in range(num_keep):
        gains = [
            sum(max(0.0, row[place] - b) for row, b in zip(rows, best, strict=True)) for place in range(len(tokens))
        ]
        place = max((place for place in range(len(tokens)) if tokens[place] not in order), key=gains.__getitem__)
        order.append(tokens[place])
        best = [max(b, row[place]) for row, b in zip(rows, best, strict=True)]
    return order


@pytest.mark.parametrize(("num_keep", "patch_weight"), [(1, 0.5), (7, 0.5), (12, 3.0), (5, 0.0)])
def test_words_and_patches_are_covered(num_keep: int, patch_weight: float) -> None:
    image = random_tokens([24], seed=num_keep)
    (selection,) = MMTok(patch_weight=patch_weight).select_visual([image], [num_keep])
    assert selection.order is not None
    assert selection.order.tolist() == covering_patches(image, 1, num_keep, patch_weight)


def test_each_tile_is_covered_by_itself() -> None:
    image = random_tokens([15, 10], newlines=3, seed=1)
    (selection,) = MMTok().select_visual([image], [10])
    expected = covering_patches(image, 1, 6, 0.5) + covering_patches(image, 2, 4, 0.5)
    assert selection.indices.tolist() == sorted(expected)


def test_without_words_only_patches_are_covered() -> None:
    image = random_tokens([15], seed=2)
    no_words = torch.zeros(0, image.features.shape[1])
    silent = VisualTokens(**vars(image) | {"question_embeddings": lambda: no_words})
    kept = [MMTok().select_visual([silent], [4])[0], MMTok(patch_weight=10).select_visual([silent], [4])[0]]
    assert kept[0].indices.tolist() == kept[1].indices.tolist()
