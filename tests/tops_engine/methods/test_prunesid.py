"""Test PruneSID: its groups, what is redundant within them, and the place of [CLS]."""

import pytest
import torch

from tests.support.visual_tokens import random_tokens
from tops_engine.methods import VisualTokens
from tops_engine.methods.prunesid import PruneSID
from tops_engine.selection import grouped_select
from tops_engine.selection.semantic_groups import principal_groups


def test_groups_are_the_components_with_the_largest_loading() -> None:
    features = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
    values = torch.sigmoid(features.double()).T
    loadings = torch.linalg.svd(values - values.mean(dim=0)).Vh[:5].T.abs()
    assert principal_groups(features, 5).tolist() == loadings.argmax(dim=1).tolist()


def test_a_token_that_repeats_a_more_attended_one_comes_last() -> None:
    """All tokens are one group; tokens 1 and 3 repeat 0 and 2, and the threshold is half of the mean similarity."""
    features = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]])
    attention = torch.tensor([5.0, 4, 3, 2, 1])
    order = [grouped_select(features, attention, 4, count).tolist() for count in range(1, 6)]
    assert order == [[0], [0, 2], [0, 2, 4], [0, 2, 4, 1], [0, 2, 4, 1, 3]]


@pytest.mark.parametrize("num_keep", [1, 2, 9, 40, 59])
def test_cls_takes_one_place(num_keep: int) -> None:
    image = random_tokens([60], seed=num_keep)
    (selection,) = PruneSID().select_visual([image], [num_keep])
    assert len(set(selection.indices.tolist())) == num_keep
    if num_keep == 1:
        assert selection.features is None
        return
    assert image.cls_features is not None
    assert selection.features is not None
    cls = image.project(image.cls_features()[:1])[0]
    changed = (selection.features != image.features[selection.indices]).any(dim=1)
    assert changed.sum() == 1
    torch.testing.assert_close(selection.features[changed][0], cls)


def test_without_cls_all_are_patches() -> None:
    image = random_tokens([40, 20], newlines=4, has_cls=False)
    (selection,) = PruneSID().select_visual([image], [30])
    assert selection.features is None
    assert [int((image.tiles()[selection.indices] == tile).sum()) for tile in (0, 1, 2)] == [0, 20, 10]


@pytest.mark.parametrize("num_keep", [1, 4, 17, 32])
def test_equal_tokens_and_no_attention_meet_the_budget(num_keep: int) -> None:
    image = random_tokens([32], has_cls=False)
    same, nothing = torch.ones(32, 6), torch.zeros(32)
    image = VisualTokens(**vars(image) | {"encoder_features": lambda: same, "vision_attention": lambda: nothing})
    (selection,) = PruneSID().select_visual([image], [num_keep])
    assert len(set(selection.indices.tolist())) == num_keep
