"""Compare EVS with the method written out token by token."""

import pytest

from tests.support.visual_tokens import cosine, frames_of, random_video
from tops_engine.methods.evs import EVS


@pytest.mark.parametrize("num_keep", [8, 9, 20, 39])
def test_the_first_frame_stays_and_then_what_changes_most(num_keep: int) -> None:
    video = random_video(5, 8, seed=num_keep)
    first, *others = frames_of(video)
    changes = {token: cosine(video.features[token], video.features[token - 8]) for frame in others for token in frame}
    kept = sorted([*first, *sorted(changes, key=lambda token: changes[token])[: num_keep - 8]])
    (selection,) = EVS().select_visual([video], [num_keep])
    assert selection.indices.tolist() == kept


def test_a_budget_below_one_frame_is_met_by_its_tokens_at_even_distances() -> None:
    (selection,) = EVS().select_visual([random_video(5, 8)], [4])
    assert selection.indices.tolist() == [0, 2, 4, 6]
