"""Compare VisionTrim with the method written out token by token."""

import math

import pytest
import torch

from tests.support.layer_tokens import grid_layout
from tests.support.visual_tokens import random_tokens
from tops_engine.methods import VisualTokens
from tops_engine.methods.visiontrim import VisionTrim

ROWS, COLUMNS = 5, 4
TOKENS = range(ROWS * COLUMNS)


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def dominant_scores(image: VisualTokens) -> list[float]:
    features = image.encoder_features()
    places = [divmod(token, COLUMNS) for token in TOKENS]
    of_features = variance(features.flatten().tolist())
    of_places = variance([float(value) for place in places for value in place])
    affinity = []
    for row, column in places:
        total = 0.0
        for other, (y, x) in enumerate(places):
            if abs(y - row) <= 1 and abs(x - column) <= 1:
                apart = float((features[row * COLUMNS + column] - features[other]).square().sum())
                total -= apart / of_features + 0.5 * ((y - row) ** 2 + (x - column) ** 2) / of_places
        affinity.append(total / 9)
    attention, local = softmax(image.vision_attention().tolist()), softmax(softmax(affinity))
    first, second = variance(attention), variance(local)
    weighted = zip(attention, local, strict=True)
    return [(second * one + first * other) / (first + second) for one, other in weighted]


@pytest.mark.parametrize("num_keep", [1, 3, 8, 12, 19])
def test_dominant_patches_and_groups_by_the_words(num_keep: int) -> None:
    image = random_tokens([len(TOKENS)], seed=num_keep)
    image = VisualTokens(**vars(image) | {"layout": grid_layout(ROWS, COLUMNS)})
    features, embedded = image.encoder_features(), image.clip_embeddings(None)
    words = torch.nn.functional.normalize(embedded.words(), dim=-1)
    scores, num_groups = dominant_scores(image), num_keep // 4
    dominant = sorted(TOKENS, key=lambda token: -scores[token])[: num_keep - num_groups]
    rest = [token for token in TOKENS if token not in dominant]

    def alike(values: torch.Tensor) -> torch.Tensor:
        return words @ torch.nn.functional.normalize(embedded.project(values), dim=-1)

    seeds = sorted(sorted(rest, key=lambda token: -float(alike(features[token]).mean()))[:num_groups])
    groups = {seed: features[seed] for seed in seeds}
    joining = [token for token in rest if token not in seeds]
    for _ in range(3 if seeds else 0):
        members: dict[int, list[int]] = {seed: [] for seed in seeds}
        for token in joining:
            members[max(seeds, key=lambda seed: float(alike(features[token]) @ alike(groups[seed])))].append(token)
        groups = {
            seed: groups[seed] + features[own].mean(dim=0) if own else groups[seed] for seed, own in members.items()
        }
    (chosen,) = VisionTrim().select_visual([image], [num_keep])
    assert chosen.indices.tolist() == sorted(dominant + seeds)
    if seeds:
        kept = chosen.indices.tolist()
        expected = torch.stack([image.project(groups[t][None])[0] if t in groups else image.features[t] for t in kept])
        torch.testing.assert_close(chosen.features, expected, atol=1e-4, rtol=1e-4)


def test_equal_patches_and_equal_attention_are_no_exception() -> None:
    image = random_tokens([len(TOKENS)])
    same = {"encoder_features": lambda: torch.ones(len(TOKENS), 6), "vision_attention": lambda: torch.ones(len(TOKENS))}
    image = VisualTokens(**vars(image) | {"layout": grid_layout(ROWS, COLUMNS)} | same)
    (chosen,) = VisionTrim().select_visual([image], [8])
    assert len(chosen.indices) == 8
    assert chosen.features is not None
    assert chosen.features.isfinite().all()
