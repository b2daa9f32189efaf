"""Boxes and points in a picture, in the pixels of the original picture."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


class Place(BaseModel):
    """What boxes and points have in common.

    Attributes
    ----------
    label : what the answer calls it; empty if it does not name it.
    picture : the number of the picture in the conversation, from 0; videos are not counted. Where the answer does not
        name the picture it is the last one.
    """

    model_config = ConfigDict(frozen=True)

    label: str = ""
    picture: int = 0


class Box(Place):
    """A box, in pixels of the original picture, turned upright as its EXIF data says."""

    left: float
    top: float
    right: float
    bottom: float

    def scaled(self, width: float, height: float) -> "Box":
        """Return the box in a picture whose sides are ``width`` and ``height`` times as long."""
        sides = {"left": self.left * width, "top": self.top * height}
        return self.model_copy(update=sides | {"right": self.right * width, "bottom": self.bottom * height})


class Point(Place):
    """A point, in pixels of the original picture, turned upright as its EXIF data says."""

    x: float
    y: float

    def scaled(self, width: float, height: float) -> "Point":
        """Return the point in a picture whose sides are ``width`` and ``height`` times as long."""
        return self.model_copy(update={"x": self.x * width, "y": self.y * height})


@dataclass(frozen=True)
class Places:
    """The boxes and points of an answer, each in the order of the text.

    Attributes
    ----------
    sizes : width and height of each picture of the conversation, in pixels.
    """

    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()

    def of_picture(self, number: int, size: tuple[int, int] | None = None) -> "Places":
        """Return the places in one picture, in a copy of it that has the given width and height."""
        width, height = self.sizes[number]
        wide, high = size or (width, height)
        scales = wide / width, high / height
        return Places(
            tuple(box.scaled(*scales) for box in self.boxes if box.picture == number),
            tuple(point.scaled(*scales) for point in self.points if point.picture == number),
            ((wide, high),),
        )

    def __bool__(self) -> bool:
        return bool(self.boxes or self.points)
