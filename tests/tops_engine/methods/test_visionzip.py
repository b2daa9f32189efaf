"""Compare VisionZip with the method written out token by token."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.visual_tokens import cosine, of_tile, random_tokens
from tops_engine.methods import VisualTokens
from tops_engine.methods.visionzip import VisionZip


def zip_tile(image: VisualTokens, tile: int, num_keep: int, num_contextual: int) -> dict[int, Tensor]:
    """Return the kept tokens of a tile: the projected feature by place."""
    tokens, vision, keys = of_tile(image, tile), image.encoder_features(), image.vision_keys()
    attention = image.vision_attention()
    num_patches = num_keep - num_contextual - (image.cls_features is not None)
    dominant = sorted(tokens, key=lambda token: -float(attention[token]))[:num_patches]
    remaining = [token for token in tokens if token not in dominant]
    step = max(1, len(remaining) // max(num_contextual, 1))
    targets = remaining[::step][:num_contextual]
    members: dict[int, list[int]] = {target: [] for target in targets}
    for token in remaining:
        if targets and token not in targets:
            members[max(targets, key=lambda target: cosine(keys[token], keys[target]))].append(token)
    result = {token: image.features[token] for token in dominant}
    for target in targets:
        merged = vision[target].clone()
        if members[target]:
            merged += vision[members[target]].mean(dim=0)
        result[target] = image.project(merged)
    if image.cls_features is not None:
        free = next(token for token in remaining if token not in targets)
        result[free] = image.project(image.cls_features()[tokens[0]])
    return result


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize(("num_keep", "num_contextual"), [(1, 0), (2, 0), (6, 1), (16, 2), (24, 4), (29, 5)])
def test_dominant_and_contextual_tokens(num_keep: int, num_contextual: int, has_cls: bool) -> None:
    image = random_tokens([30], seed=num_keep, has_cls=has_cls)
    (selection,) = VisionZip().select_visual([image], [num_keep])
    expected = zip_tile(image, 1, num_keep, num_contextual)
    assert selection.indices.tolist() == sorted(expected)
    assert selection.features is not None or not has_cls
    features = selection.features if selection.features is not None else image.features[selection.indices]
    torch.testing.assert_close(features, torch.stack([expected[place] for place in sorted(expected)]))


def test_each_tile_is_zipped_by_itself() -> None:
    image = random_tokens([20, 20, 12], newlines=5, seed=3)
    (selection,) = VisionZip(contextual=0.25).select_visual([image], [26])
    expected: dict[int, Tensor] = {}
    for tile, num_keep, num_contextual in [(1, 10, 2), (2, 10, 2), (3, 6, 2)]:
        expected |= zip_tile(image, tile, num_keep, num_contextual)
    assert selection.indices.tolist() == sorted(expected)
    torch.testing.assert_close(selection.features, torch.stack([expected[place] for place in sorted(expected)]))


def test_newlines_stay_only_where_all_patches_do() -> None:
    image = random_tokens([4, 4], newlines=3)
    (selection,) = VisionZip().select_visual([image], [10])
    assert selection.features is None
    newlines = of_tile(image, 0)
    assert sorted(set(range(11)) - set(selection.indices.tolist())) == newlines[2:]


@pytest.mark.parametrize(
    ("budget", "dominant", "step", "last"),
    [(192, 161, 13, 377), (128, 107, 23, 437), (64, 53, 52, 468), (32, 26, 110, 440)],
)
def test_the_published_splits_of_576(budget: int, dominant: int, step: int, last: int) -> None:
    """Expect 162 + 30, 108 + 20, 54 + 10 and 27 + 5 tokens; one of the dominant tokens is [CLS]."""
    image = random_tokens([576])
    # The last patches are the dominant ones, so that places and the order of what remains are the same.
    attention = torch.arange(576.0)
    image = VisualTokens(**vars(image) | {"vision_attention": lambda: attention})
    (selection,) = VisionZip().select_visual([image], [budget])
    targets = list(range(0, last + 1, step))
    assert selection.indices.tolist() == sorted({1, *targets, *range(576 - dominant, 576)})


@given(st.integers(2, 12), st.data())
def test_every_budget_is_met_also_with_identical_tokens(n: int, data: st.DataObject) -> None:
    num_keep = data.draw(st.integers(1, n - 1))
    image = random_tokens([n], has_cls=data.draw(st.booleans()))
    ones = torch.ones(n, 6)
    image = VisualTokens(**vars(image) | {"encoder_features": lambda: ones, "vision_attention": lambda: ones[:, 0]})
    (selection,) = VisionZip(contextual=data.draw(st.sampled_from([0.0, 0.15625, 0.9]))).select_visual(
        [image], [num_keep]
    )
    assert len(set(selection.indices.tolist())) == num_keep
    assert selection.indices.tolist() == sorted(selection.indices.tolist())
