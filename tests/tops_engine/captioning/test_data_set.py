"""Test when a run gives up; the tests of the command cover the rest."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tops_engine.captioning.asking import HOPELESS, Captioned, Picture
from tops_engine.captioning.data_set import caption_folder
from tops_engine.errors import InvalidImage, InvalidInput, TopsError


@pytest.mark.parametrize("num_refused", [1, HOPELESS - 1, HOPELESS])
def test_only_pictures_that_could_be_opened_make_a_run_hopeless(tmp_path: Path, num_refused: int) -> None:
    for number in range(HOPELESS + num_refused):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number:03}.png")

    def ask(pictures: Iterator[Picture]) -> Iterator[Captioned]:
        for number, picture in enumerate(pictures):
            error: TopsError = InvalidImage("Bad.") if number < HOPELESS else InvalidInput("No.")
            yield Captioned(picture.name, error=error)

    if num_refused == HOPELESS:
        with pytest.raises(InvalidInput, match=r"None of the first \d+ pictures .* the last: No\."):
            caption_folder(ask, tmp_path, tmp_path / "out.jsonl", {})
    else:
        assert caption_folder(ask, tmp_path, tmp_path / "out.jsonl", {}).failed == HOPELESS + num_refused
