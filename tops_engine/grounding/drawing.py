"""Draw boxes and points on a picture, and as a mask."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from tops_engine.grounding.places import Box, Place, Places, Point

#: One colour a label, in the order in which labels appear; they begin anew after the last.
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")

MARGIN = 12


def drawn(picture: Image.Image, places: Places) -> Image.Image:
    """Return a copy of a picture with boxes and points, whose coordinates are its own pixels."""
    copy = picture.convert("RGB")
    copy = copy.copy() if copy is picture else copy
    pen = ImageDraw.Draw(copy)
    line = max(2, round(max(picture.size) / 300))
    font = ImageFont.load_default(max(11, round(max(picture.size) / 50)))
    colours = _colours((*places.boxes, *places.points))
    for box in places.boxes:
        pen.rectangle(_corners(box), outline=colours[box.label], width=line)
    for point in places.points:
        pen.ellipse(_disc(point, 3 * line), fill=colours[point.label], outline="white", width=max(1, line // 2))
    for place in (*places.boxes, *places.points):
        _write_label(pen, place, colours[place.label], line, font, picture.size)
    return copy


def mask(size: tuple[int, int], places: Places) -> Image.Image:
    """Return a mask of ``size``: white in boxes and around points, black elsewhere."""
    image = Image.new("L", size)
    pen = ImageDraw.Draw(image)
    for box in places.boxes:
        pen.rectangle(_corners(box), fill=255)
    for point in places.points:
        pen.ellipse(_disc(point, max(3, round(max(size) / 100))), fill=255)
    return image


def column(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return pictures one below the other; a single one alone."""
    if len(pictures) == 1:
        return pictures[0]
    height = sum(picture.height + MARGIN for picture in pictures) - MARGIN
    canvas = Image.new("RGB", (max(picture.width for picture in pictures), height), "white")
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height + MARGIN
    return canvas


def _colours(places: Sequence[Place]) -> dict[str, str]:
    labels = dict.fromkeys(place.label for place in places)
    return {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(labels)}


def _corners(box: Box) -> tuple[int, int, int, int]:
    """Return the first and the last pixel of a box, at least one in each direction."""
    left, top = int(box.left), int(box.top)
    return left, top, max(left, round(box.right) - 1), max(top, round(box.bottom) - 1)


def _disc(point: Point, radius: int) -> tuple[float, float, float, float]:
    return point.x - radius, point.y - radius, point.x + radius, point.y + radius


def _write_label(
    pen: ImageDraw.ImageDraw,
    place: Place,
    colour: str,
    line: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """Write a label above its box, or inside where there is no room; beside its point."""
    label = " ".join(place.label.split())[:60]
    if not label:
        return
    _, _, width, height = pen.textbbox((0, 0), label, font)
    if isinstance(place, Box):
        left, top = place.left, place.top - height - line
    else:
        assert isinstance(place, Point)
        left, top = place.x + 4 * line, place.y - height / 2
    left = max(0.0, min(left, size[0] - width - 2 * line))
    top = max(0.0, min(top, size[1] - height - line))
    pen.rectangle((left, top, left + width + 2 * line, top + height + line), fill=colour)
    pen.text((left + line, top), label, "white", font)
