"""Test the removal of duplicates."""

import torch

from tops_engine.selection import distinct_tokens


def test_everything_or_nothing_is_kept() -> None:
    features = torch.randn(9, 4)
    assert distinct_tokens(features, 9).tolist() == list(range(9))
    assert distinct_tokens(features, 0).tolist() == []


def test_copies_at_even_places_go_first() -> None:
    """Each even token of the first ten has a copy at an odd place; the others resemble nothing."""
    features = torch.eye(20)
    features[1:10:2] = features[0:10:2]
    assert sorted(distinct_tokens(features, 15).tolist()) == [1, 3, 5, 7, 9, *range(10, 20)]


def test_equal_tokens_leave_the_number_asked_for() -> None:
    for num_keep in range(1, 30):
        assert len(set(distinct_tokens(torch.ones(30, 3), num_keep).tolist())) == num_keep
