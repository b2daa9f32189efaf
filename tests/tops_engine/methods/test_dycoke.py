"""Compare DyCoke with the method written out token by token."""

import pytest

from tests.support.visual_tokens import cosine, frames_of, random_video
from tops_engine.methods.dycoke import DyCoke


@pytest.mark.parametrize("num_frames", [4, 6, 7, 8])
@pytest.mark.parametrize("each", [0, 1, 5])
def test_whole_frames_and_what_differs_from_an_earlier_one(num_frames: int, each: int) -> None:
    video = random_video(num_frames, 8, seed=num_frames)
    frames = frames_of(video)
    kept = []
    for number, frame in enumerate(frames):
        if number % 4 == 0:
            kept += frame
            continue
        earlier = frames[number - 2] if number % 4 == 2 else frames[number - 1]
        similarity = {
            token: cosine(video.features[token], video.features[other])
            for token, other in zip(frame, earlier, strict=True)
        }
        kept += sorted(frame, key=lambda token: similarity[token])[:each]
    (selection,) = DyCoke().select_visual([video], [len(kept)])
    assert selection.indices.tolist() == sorted(kept)


def test_a_rest_goes_to_the_first_frames() -> None:
    (selection,) = DyCoke().select_visual([random_video(4, 6)], [11])
    assert (selection.indices // 6).bincount().tolist() == [6, 2, 2, 1]


def test_a_budget_below_the_whole_frames_is_met_by_their_tokens_at_even_distances() -> None:
    (selection,) = DyCoke().select_visual([random_video(8, 6)], [4])
    assert selection.indices.tolist() == [0, 3, 24, 27]
