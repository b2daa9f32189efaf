"""How large pictures reach the vision tower of a family, and how many visual tokens a size has."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from PIL import Image

from tops_engine.errors import UnsupportedModel
from tops_engine.families.parts.known_pictures import KnownPictures
from tops_engine.media.bounds import scaled, scaled_size


class PictureSizes:
    """The part of a family that bounds the pixels of pictures.

    A family whose image processor has settings for that overrides :meth:`pixel_settings`. If these settings alone
    decide, and not the size of the picture, it overrides :meth:`pixel_counts`, too.

    Attributes
    ----------
    one_size : whether the image processor brings every picture to one size, so that a smaller one has as many tokens.
    """

    one_size: ClassVar[bool] = False
    _pictures: KnownPictures
    _pixels: tuple[int | None, int | None] = (None, None)

    def bound_pixels(self, least: int | None, most: int | None) -> None:
        """Scale pictures from now on to at least and at most that many pixels; None is no bound.

        A family whose processor scales pictures to a size within bounds sets those bounds instead.
        """
        settings = self.pixel_settings(least, most)
        if settings is None:
            self._pixels = (least, most)
        for name, value in (settings or {}).items():
            setattr(self._pictures, name, value)

    @contextmanager
    def other_bounds(self, least: int | None, most: int | None) -> Iterator[None]:
        """Set the image processor's bounds in a block; pictures are not scaled before it sees them."""
        pixels, self._pixels = self._pixels, (None, None)
        try:
            with self._pictures.other_settings(self.pixel_settings(least, most) or {}):
                yield
        finally:
            self._pixels = pixels

    def bounded(self, image: Image.Image) -> Image.Image:
        """Return a picture as the image processor gets it by :meth:`bound_pixels`."""
        return scaled(image, *self._pixels)

    def bounded_size(self, image: Image.Image) -> tuple[int, int]:
        """Return width and height of :meth:`bounded`."""
        return scaled_size(*image.size, *self._pixels)

    def pixel_settings(self, least: int | None, most: int | None) -> Mapping[str, Any] | None:
        """Return the settings of the image processor for pictures of at least and at most that many pixels.

        None if it has no such settings; the pictures are then scaled before it sees them.
        """
        return None

    def pixel_counts(self) -> Sequence[int] | None:
        """Return the numbers of pixels that the settings can bring every picture to, ascending.

        None if the size of the picture decides.
        """
        return None

    def picture_tokens(self, width: int, height: int, alone: bool = True) -> int:
        """Return the number of visual tokens of a picture of that size, by the image processor's present settings.

        Parameters
        ----------
        alone : whether it is the only picture of its prompt.

        Raises
        ------
        UnsupportedModel
            If the family does not say.
        """
        raise UnsupportedModel("This model family does not say how many visual tokens a picture of a size has.")
