"""Draw the icon and the banner of the pack in ComfyUI's registry: python -m tools.draw_registry_pictures"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tops_engine.media.colours import BAR, GREY, INK, PAPER

FOLDER = Path(__file__).parents[1] / "docs" / "assets"

#: The registry takes a square of at most 400 pixels, and a banner of 21:9.
ICON, BANNER = 400, (1260, 540)

#: A picture of 8 x 8 patches: the few that were kept stand out.
KEPT = {(2, 2), (3, 2), (4, 2), (5, 2), (3, 3), (4, 3), (3, 4), (4, 4), (3, 5), (4, 5), (6, 6), (1, 5)}
PATCHES = 8
PRUNED = (58, 63, 74)


def draw_icon(side: int) -> Image.Image:
    """Return the patches on dark paper; each has a small gap around it."""
    icon = Image.new("RGB", (side, side), PAPER)
    pen = ImageDraw.Draw(icon)
    step = side / (PATCHES + 1)
    for row in range(PATCHES):
        for column in range(PATCHES):
            left, top = step * (column + 0.5), step * (row + 0.5)
            colour = BAR if (column, row) in KEPT else PRUNED
            pen.rounded_rectangle((left + 3, top + 3, left + step - 3, top + step - 3), step / 6, colour)
    return icon


def draw_banner() -> Image.Image:
    """Return the icon beside the name and a sentence."""
    banner = Image.new("RGB", BANNER, PAPER)
    banner.paste(draw_icon(BANNER[1]), (20, 0))
    pen = ImageDraw.Draw(banner)
    left = BANNER[1] + 60
    pen.text((left, 150), "TOPS Engine", INK, ImageFont.load_default(92))
    pen.text((left, 280), "Vision-language models", GREY, ImageFont.load_default(44))
    pen.text((left, 340), "on the visual tokens that matter", GREY, ImageFont.load_default(44))
    return banner


def main() -> None:
    draw_icon(ICON).save(FOLDER / "icon.png", optimize=True)
    draw_banner().save(FOLDER / "banner.png", optimize=True)


if __name__ == "__main__":
    main()
