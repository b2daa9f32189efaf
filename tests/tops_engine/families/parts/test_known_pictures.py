"""Test the image processor's cache: the same pixels, computed once."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BatchFeature

from tests.conftest import Picture
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.families.parts import known_pictures
from tops_engine.families.parts.known_pictures import KnownPictures
from tops_engine.settings import Generation


class Shrinker:
    """An image processor that resizes pictures to ``size`` pixels a side and counts its calls."""

    size = 4
    calls = 0

    def __call__(self, images: list[list[Image.Image]], scale: float = 1.0, **_: object) -> BatchFeature:
        self.calls += 1
        side = (self.size, self.size)
        rows = [torch.tensor(np.array(image.resize(side))) * scale for row in images for image in row]
        return BatchFeature({"pixel_values": torch.stack(rows)})


@pytest.fixture
def shrinker() -> Shrinker:
    return Shrinker()


def pixels(processor: Any, *images: Image.Image, **options: float) -> torch.Tensor:
    made = processor([list(images)], **options)
    return made.pop("pixel_values")  # what a caller takes out stays for the next one


def test_an_equal_picture_is_known(shrinker: Shrinker, picture: Picture) -> None:
    known = KnownPictures(shrinker)
    first = pixels(known, picture(40, 30, 1))
    assert torch.equal(pixels(known, picture(40, 30, 1)), first)
    assert shrinker.calls == 1


def test_other_pictures_orders_and_options_are_not(shrinker: Shrinker, picture: Picture) -> None:
    known, one, two = KnownPictures(shrinker), picture(40, 30, 1), picture(40, 30, 2)
    for images, scale in [((one,), 1.0), ((two,), 1.0), ((one, two), 1.0), ((two, one), 1.0), ((one,), 0.5)]:
        assert torch.equal(pixels(known, *images, scale=scale), pixels(Shrinker(), *images, scale=scale))
    assert shrinker.calls == 5


def test_changing_the_processor_forgets(shrinker: Shrinker, picture: Picture) -> None:
    known = KnownPictures(shrinker)
    pixels(known, picture())
    known.size = 6
    assert known.size == shrinker.size == 6
    assert pixels(known, picture()).shape[-2] == 6


def test_no_more_is_kept_than_the_limit(shrinker: Shrinker, picture: Picture) -> None:
    size = 4 * 4 * 3 * 4
    known, one, two, three = (KnownPictures(shrinker, 2 * size), *(picture(40, 30, seed) for seed in range(3)))
    for image in (one, two, one, three, one):
        pixels(known, image)
    assert shrinker.calls == 3
    pixels(known, two)
    assert shrinker.calls == 4
    for _ in range(2):
        pixels(known, one, two, three)
    assert shrinker.calls == 6
    assert known.num_bytes == 2 * size
    known.limit(size)
    assert known.num_bytes == size
    pixels(known, two)
    pixels(known, one)
    assert shrinker.calls == 7
    known.forget()
    assert known.num_bytes == 0


def test_copies_are_independent(shrinker: Shrinker, picture: Picture) -> None:
    known = copy.deepcopy(KnownPictures(shrinker))
    pixels(known, picture())
    assert shrinker.calls == 0


def test_fingerprints_are_those_of_the_pictures_as_they_are_now(shrinker: Shrinker, picture: Picture) -> None:
    known, one, two = KnownPictures(shrinker), picture(40, 30, 1), picture(40, 30, 2)
    pixels(known, one)
    assert known.digests([one, two]) == [known_pictures.picture_digest(one), known_pictures.picture_digest(two)]
    before = known_pictures.picture_digest(one)
    one.putpixel((0, 0), (1, 2, 3))
    assert known.digests([one]) == [known_pictures.picture_digest(one)] != [before]


def test_a_fingerprint_is_taken_once_a_question(
    llava_engine: Engine, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bytes] = []
    digest = known_pictures.digest_of

    def counted(about: str, pixels: bytes) -> bytes:
        taken.append(pixels)
        return digest(about, pixels)

    llava_engine.forget()  # a picture beside one that is known would be prepared once more
    monkeypatch.setattr(known_pictures, "digest_of", counted)
    llava_engine.chat([user_message("What is shown?", picture(), picture(seed=1))], generation=Generation(max_tokens=1))
    assert len(taken) == 2
    # Equal pixels need none, whatever object holds them.
    llava_engine.chat([user_message("And here?", picture(seed=1), picture())], generation=Generation(max_tokens=1))
    assert len(taken) == 2


def test_pixels_are_kept_only_within_the_limit(shrinker: Shrinker, picture: Picture) -> None:
    made, raw = 4 * 4 * 3 * 4, 40 * 30 * 3
    known = KnownPictures(shrinker, made + raw)
    pixels(known, picture(40, 30, 1))
    assert known.num_bytes == made + raw
    known.limit(made + raw - 1)
    assert known.num_bytes == made
