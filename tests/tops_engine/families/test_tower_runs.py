"""Test vision towers that encode equal tiles, frames and pictures once, and what towers cannot leave out."""

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from tests.conftest import Picture
from tests.support.towers import (
    EXACT,
    ONLY_EQUAL,
    PACKED,
    ROUNDING,
    TILES,
    WHOLE,
    WHOLE_ONLY,
    Loaded,
    conversations,
    document,
    encoded,
    prepared,
    towers,
    values,
)
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, InvalidInput, UnsupportedModel
from tops_engine.settings import Generation, Pruning
from tops_engine.tower import TowerOptions


@towers(TILES, PACKED, ONLY_EQUAL)
def test_a_tower_without_equal_parts_gives_the_same_features_and_signals(loaded: Loaded, picture: Picture) -> None:
    prompts = prepared(loaded, picture)
    whole, reduced = encoded(loaded.family, prompts), encoded(loaded.family, prompts, EXACT)
    for expected, got in zip(map(values, whole), map(values, reduced), strict=True):
        assert expected.keys() == got.keys()
        for name in expected:
            assert torch.allclose(expected[name].float(), got[name].float(), atol=ROUNDING), name
    assert all(image.survivors is None for image in reduced)


@towers(TILES, PACKED, ONLY_EQUAL)
def test_equal_pictures_have_equal_features_bit_for_bit_and_are_encoded_once(loaded: Loaded, picture: Picture) -> None:
    one, same, page, other, again, *videos = encoded(loaded.family, prepared(loaded, picture), EXACT)
    assert torch.equal(one.features, same.features)
    uses = [image.tower for image in (one, same, page, other, again)]
    assert all(use is not None for use in uses)
    encoded_patches = [use.encoded for use in uses if use]
    assert encoded_patches[1] == 0
    assert encoded_patches[0] == uses[0].patches  # type: ignore[union-attr]
    if loaded.name not in {"onevision"}:  # which cuts a single picture otherwise than one of several
        assert encoded_patches[4] == 0
    for video in videos:
        assert video.tower is not None
        assert 3 * video.tower.encoded <= 2 * video.tower.patches
        frames = video.layout.frame
        assert frames is not None
        first = video.features[frames == torch.unique(frames)[-2]] if loaded.name in {"internvl"} else None
        assert first is None or torch.equal(first, video.features[frames == frames.max()])


@pytest.mark.parametrize("loaded", ["llava_next", "idefics3", "internvl"], indirect=True)
def test_blank_tiles_of_a_page_are_encoded_once(loaded: Loaded) -> None:
    page = Image.new("RGB", (300, 300), "white")
    prompt = loaded.family.prepare(read_conversation([user_message("What?", page)]))
    (image,) = encoded(loaded.family, [prompt], EXACT)
    tiles = len(set(image.tiles().tolist()) - {0})
    assert tiles > 4
    assert image.tower is not None
    assert image.tower.encoded * tiles == image.tower.patches


@towers(TILES, PACKED, ONLY_EQUAL)
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_answers_are_those_of_the_whole_tower(loaded: Loaded, picture: Picture, keep: float) -> None:
    asked, generation = conversations(loaded, picture), Generation(max_tokens=6)
    whole = loaded.engine.batch(asked, Pruning(keep=keep), generation)
    reduced = loaded.engine.batch(asked, Pruning(keep=keep, dedup="exact"), generation)
    assert [answer.token_ids for answer in reduced] == [answer.token_ids for answer in whole]
    assert [answer.usage.stages for answer in reduced] == [answer.usage.stages for answer in whole]
    assert sum(answer.flops.vision for answer in reduced) < sum(answer.flops.vision for answer in whole)
    assert reduced[0].usage.tower is not None
    assert whole[0].usage.tower is None


@towers(PACKED)
def test_without_equal_patches_the_approximate_form_is_the_tower(loaded: Loaded, picture: Picture) -> None:
    prompt = loaded.family.prepare(read_conversation([user_message("What?", picture(120, 90))]))
    (whole,), (reduced,) = (encoded(loaded.family, [prompt], options) for options in (WHOLE, TowerOptions("patches")))
    for name, expected in values(whole).items():
        assert torch.equal(expected, values(reduced)[name]), name


@towers(PACKED)
def test_patches_equal_to_a_neighbour_take_its_features(loaded: Loaded, picture: Picture) -> None:
    prompt = loaded.family.prepare(read_conversation([user_message("What?", document(picture))]))
    (image,) = encoded(loaded.family, [prompt], TowerOptions("patches"))
    rows, columns = image.layout.grids[0]
    grid = image.features.view(rows, columns, -1)
    assert torch.equal(grid[-1, -1], grid[-1, -2])
    assert torch.equal(grid[-1, -1], grid[-2, -1])
    assert image.tower is not None
    assert image.tower.encoded < image.tower.patches / 2
    assert image.num_remaining == image.layout.num_tokens


# What cannot be done is said before the run.


@towers(ONLY_EQUAL, WHOLE_ONLY)
def test_towers_that_cannot_drop_patches_say_so(loaded: Loaded, picture: Picture) -> None:
    pruning = Pruning(keep=0.2, tower_keep=0.5)
    with pytest.raises(UnsupportedModel, match=r"^tower_keep cannot drop patches .* tower, .*; leave it out\.$"):
        loaded.engine.chat([user_message("What?", picture())], pruning)


@towers(WHOLE_ONLY)
def test_towers_that_cannot_leave_out_equal_pictures_say_so(loaded: Loaded, picture: Picture) -> None:
    with pytest.raises(UnsupportedModel, match=r"with dedup=exact; leave dedup out\.$"):
        loaded.engine.chat([user_message("What?", picture())], Pruning(dedup="exact"))


def test_wrong_options_are_one_sentence(engines: Callable[[str], Engine], picture: Picture) -> None:
    asked = [user_message("What?", picture())]
    llava = engines("llava")
    with pytest.raises(UnsupportedModel, match=r"with dedup=patches; use dedup=exact\.$"):
        llava.chat(asked, Pruning(dedup="patches"))
    with pytest.raises(InvalidInput, match=r"it has 4 layers, so give 1 to 3\.$"):
        llava.chat(asked, Pruning(keep=0.1, tower_keep=0.5, tower_layer=4))
    with pytest.raises(BudgetError, match=r"leaves 4 tokens .* and 16 .*; raise tower_keep or lower keep\.$"):
        llava.chat(asked, Pruning(method="divprune", keep=1.0, tower_keep=0.25))
