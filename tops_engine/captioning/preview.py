"""Draw pictures beside their captions, to look through before a training run."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from tops_engine.errors import InvalidImage
from tops_engine.media.images import ImageSource, open_image

#: Pixels: of a row, of its picture at most, around both, and of the sheet's width.
ROW, THUMBNAIL, MARGIN, WIDTH = 176, 160, 8, 960

NAME_SIZE = 18

#: Sizes of a caption's letters, the characters of a line, and the lines of a row. A caption has the first size that
#: holds it, because nodes show the sheet small. The last size leaves out what it does not hold.
TEXT_SIZES = ((30, 50, 4), (21, 71, 5), (15, 100, 7))

PAPER, NAME, INK, FAULT = (24, 26, 31), (150, 158, 170), (235, 237, 240), (240, 140, 120)


@dataclass(frozen=True)
class Previewed:
    """A picture with its name and its caption; an empty caption is one that the picture does not have yet."""

    name: str
    source: ImageSource
    caption: str = ""


def draw_preview(rows: Sequence[Previewed]) -> Image.Image:
    """Return a sheet with a row for each picture: the picture on the left, its name and its caption on the right.

    The font has letters of Latin scripts only; other letters are drawn as boxes.
    """
    sheet = Image.new("RGB", (WIDTH, MARGIN + ROW * max(1, len(rows))), PAPER)
    for number, row in enumerate(rows):
        _draw_row(sheet, MARGIN + number * ROW, row)
    return sheet


def draw_sheets(rows: Sequence[Previewed], num_rows: int) -> list[Image.Image]:
    """Return sheets of so many rows each, all of one size."""
    sheets = [draw_preview(rows[begin : begin + num_rows]) for begin in range(0, len(rows), num_rows)]
    if len(sheets) > 1:
        last = Image.new("RGB", sheets[0].size, PAPER)
        last.paste(sheets[-1])
        sheets[-1] = last
    return sheets


def _draw_row(sheet: Image.Image, top: int, row: Previewed) -> None:
    pen = ImageDraw.Draw(sheet)
    text, colour = row.caption or "(no caption)", INK if row.caption else NAME
    try:
        picture = open_image(row.source)
    except InvalidImage as error:
        text, colour = str(error), FAULT
    else:
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        left = MARGIN + (THUMBNAIL - picture.width) // 2
        sheet.paste(picture, (left, top + (THUMBNAIL - picture.height) // 2))
    left = THUMBNAIL + 3 * MARGIN
    pen.text((left, top), row.name, NAME, ImageFont.load_default(NAME_SIZE))
    size, length, most = next(
        (sizes for sizes in TEXT_SIZES if len(textwrap.wrap(text, sizes[1])) <= sizes[2]), TEXT_SIZES[-1]
    )
    lines = textwrap.wrap(text, length, max_lines=most, placeholder=" ...")
    pen.multiline_text((left, top + NAME_SIZE + 6), "\n".join(lines), colour, ImageFont.load_default(size))
