"""Texts in drawings, of a size that fits their place."""

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

LEAST = 11


def fitted(text: str, width: float, size: int) -> tuple[str, Font]:
    """Return a text and its font: of the given size, smaller if it would be wider than ``width`` pixels.

    A text that is too wide at 11 pixels is cut.
    """
    while size > LEAST and ImageFont.load_default(size).getlength(text) > width:
        size -= 1
    font = ImageFont.load_default(size)
    if font.getlength(text) <= width:
        return text, font
    while text and font.getlength(text + " ...") > width:
        text = text[:-1]
    return text + " ...", font
