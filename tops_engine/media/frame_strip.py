"""A strip of the frames of a video: some of them as small pictures, and a bar for each with the tokens it keeps."""

from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont

from tops_engine.media.colours import BAR, INK, PAPER
from tops_engine.media.videos import evenly

#: Pixels: the least width of a small picture, the height of the highest bar, of a number and of the caption.
LEAST_WIDTH, BARS, NUMBER, CAPTION = 80, 44, 18, 30
MOST_PICTURES = 12


def draw_strip(
    picture_of: Callable[[int], Image.Image], kept: Sequence[float], width: int, caption: str
) -> Image.Image:
    """Draw up to 12 frames, spread evenly, a bar below for every frame, and a caption.

    Parameters
    ----------
    picture_of : returns the picture of the frame with this number among ``kept``.
    kept : how many tokens each frame keeps, as a layer-average. The most is the highest bar.
    width : of the strip, in pixels.
    """
    shown = evenly(len(kept), max(1, min(MOST_PICTURES, width // LEAST_WIDTH)))
    pictures = [picture_of(number) for number in shown]
    cell = width / len(shown)
    scale = min((cell - 2) / pictures[0].width, cell / pictures[0].height)
    size = max(1, round(scale * pictures[0].width)), max(1, round(scale * pictures[0].height))
    strip = Image.new("RGB", (width, size[1] + NUMBER + BARS + CAPTION), PAPER)
    for place, picture in enumerate(pictures):
        left = round(place * cell + (cell - size[0]) / 2)
        strip.paste(picture.resize(size, Image.Resampling.LANCZOS), (left, 0))
    _draw_bars(strip, size[1] + NUMBER, kept)
    pen = ImageDraw.Draw(strip)
    pen.text((0, strip.height - CAPTION + 4), caption, INK, ImageFont.load_default(20))
    return strip


def _draw_bars(strip: Image.Image, top: int, kept: Sequence[float]) -> None:
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(14)
    step, most = strip.width / len(kept), max(*kept, 1e-9)
    for number, value in enumerate(kept):
        left, right = round(number * step), max(round((number + 1) * step) - 2, round(number * step))
        high = round(BARS * value / most)
        if high:
            pen.rectangle((left, top + BARS - high, right, top + BARS - 1), fill=BAR)
        text = f"{value:.0f}" if value == round(value) or value >= 10 else f"{value:.1f}"
        if font.getlength(text) < step:
            middle = (left + right - font.getlength(text)) / 2
            pen.text((middle, top + BARS - high - NUMBER + 1), text, INK, font)
    pen.line((0, top + BARS, strip.width, top + BARS), fill=INK)
