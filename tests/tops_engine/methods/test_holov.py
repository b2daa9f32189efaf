"""Compare HoloV with the method written out token by token."""

import statistics

import pytest
import torch

from tests.support.visual_tokens import cosine, random_tokens
from tops_engine.methods import VisualTokens
from tops_engine.methods.holov import HoloV
from tops_engine.selection import holistic_select


def kept_patches(image: VisualTokens, num_keep: int, num_crops: int) -> set[int]:
    """Return the kept tokens of one tile whose crops all have at least two tokens and room for their places."""
    attention = image.vision_attention().tolist()
    crops = [crop.tolist() for crop in torch.arange(len(attention)).tensor_split(num_crops)]
    weights = []
    for crop in crops:
        varieties = []
        for token in crop:
            row = [0.0 if other == token else cosine(image.features[token], image.features[other]) for other in crop]
            mean = sum(row) / (len(crop) - 1)
            varieties.append(sum((value - mean) ** 2 for value in row) / (len(crop) - 1))
        scale = statistics.mean(attention[token] for token in crop) / statistics.mean(varieties)
        weights.append(statistics.mean(attention[t] + 0.09 * scale * v for t, v in zip(crop, varieties, strict=True)))
    counts = [int(weight / sum(weights) * num_keep) for weight in weights]
    for number in sorted(range(num_crops), key=lambda number: -weights[number])[: num_keep - sum(counts)]:
        counts[number] += 1
    kept: set[int] = set()
    for crop, count in zip(crops, counts, strict=True):
        assert count <= len(crop)
        kept |= set(sorted(crop, key=lambda token: -attention[token])[:count])
    return kept


@pytest.mark.parametrize(("num_keep", "num_crops"), [(9, 4), (20, 6), (1, 5)])
def test_crops_share_the_budget_by_attention_and_variety(num_keep: int, num_crops: int) -> None:
    image = random_tokens([50], seed=num_keep)
    (selection,) = HoloV(num_crops=num_crops).select_visual([image], [num_keep])
    assert set(selection.indices.tolist()) == kept_patches(image, num_keep, num_crops)


def test_places_that_a_crop_cannot_hold_go_to_the_others() -> None:
    attention = torch.tensor([10.0, 9.0, 8.0, 0.1, 0.2, 0.3, 0.1, 0.2, 0.4])
    kept = holistic_select(torch.eye(9), attention, 5, num_crops=3, variety_weight=0.0)
    assert sorted(kept.tolist()) == [0, 1, 2, 7, 8]


def test_equal_crops_get_equal_places_also_without_attention() -> None:
    kept = holistic_select(torch.eye(12), torch.zeros(12), 6, num_crops=3, variety_weight=0.09)
    assert kept.tolist() == [0, 1, 4, 5, 8, 9]
