"""Test vision towers that read some of the tiles at a time: the same features and signals, and less memory at once."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import Picture
from tests.support.towers import ONLY_EQUAL, ROUNDING, TILES, Loaded, encoded, prepared, values
from tops_engine.conversation.messages import Message, user_message
from tops_engine.engine import Engine
from tops_engine.errors import OutOfMemory
from tops_engine.families.parts import tower_parts
from tops_engine.families.parts.tower_parts import in_parts
from tops_engine.settings import Generation, Pruning

REPEATED = [name for name in [*TILES, *ONLY_EQUAL] if name not in ("llava_next", "glm4v")]  # GLM reads rows of patches


@pytest.mark.parametrize(
    "loaded", ["llava_next", *(pytest.param(name, marks=pytest.mark.full) for name in REPEATED)], indirect=True
)
def test_parts_give_the_features_and_signals_of_the_whole(
    loaded: Loaded, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prepared(loaded, picture)
    whole = list(map(values, encoded(loaded.family, prompts)))
    monkeypatch.setattr(tower_parts, "MAX_TILES", 2)
    for expected, got in zip(whole, map(values, encoded(loaded.family, prompts)), strict=True):
        assert expected.keys() == got.keys()
        for name in expected:
            assert torch.allclose(expected[name].float(), got[name].float(), atol=ROUNDING), name


class LittleMemory:
    """Let a tower fail for lack of memory on more than some tiles; note how many it was given each time."""

    def __init__(self, tower: torch.nn.Module, most: int) -> None:
        self.given: list[int] = []
        self._most = most
        self._handle = tower.register_forward_pre_hook(self._check, with_kwargs=True)

    def _check(self, _tower: torch.nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Any]) -> None:
        tiles = inputs[0] if inputs else keywords["pixel_values"]
        self.given.append(len(tiles))
        if len(tiles) > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def __enter__(self) -> "LittleMemory":
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


@pytest.fixture
def messages(picture: Picture) -> list[Message]:
    return [user_message("Compare them.", *(picture(56, 56, seed) for seed in range(5)))]


def test_a_lack_of_memory_halves_the_parts(llava_engine: Engine, messages: list[Message]) -> None:
    pruning, generation = Pruning(keep=0.4), Generation(max_tokens=4)
    llava_engine.forget()
    expected = llava_engine.chat(messages, pruning, generation).token_ids
    llava_engine.forget()
    with LittleMemory(llava_engine.family.model.model.vision_tower, most=2) as memory:
        assert llava_engine.chat(messages, pruning, generation).token_ids == expected
    assert memory.given == [5, 3, 2, 2, 1]


def test_memory_that_does_not_hold_one_tile_is_an_error(llava_engine: Engine, messages: list[Message]) -> None:
    llava_engine.forget()
    with (
        LittleMemory(llava_engine.family.model.model.vision_tower, most=0) as memory,
        pytest.raises(OutOfMemory, match="fewer or smaller pictures"),
    ):
        llava_engine.chat(messages)
    assert memory.given == [5, 3, 2, 1]


def test_other_errors_are_raised_at_once() -> None:
    def fails(_: Tensor) -> Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        in_parts(fails, torch.zeros(4, 3, 2, 2))
