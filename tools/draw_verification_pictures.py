"""Draw the pictures that `tops verify` asks about: python -m tools.draw_verification_pictures

They are mini's test scenes in other shapes: two side by side, two above each other, and a small one. The photograph
behind the wide picture is NASA's (rocket.jpg of scikit-image, public domain); the other grounds are drawn.
"""

from PIL import Image

from tops_engine.mini.scenes import SIDE, generate
from tops_engine.verification.pictures import FOLDER

QUALITY = 88
SMALL_SIDE = 224


def main() -> None:
    left, right, upper, lower, small = (generate(seed, "test").image for seed in (7, 8, 2, 15, 16))
    wide = Image.new("RGB", (2 * SIDE, SIDE))
    wide.paste(left, (0, 0))
    wide.paste(right, (SIDE, 0))
    tall = Image.new("RGB", (SIDE, 2 * SIDE))
    tall.paste(upper, (0, 0))
    tall.paste(lower, (0, SIDE))
    small = small.resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.LANCZOS)
    for name, picture in {"wide": wide, "tall": tall, "small": small}.items():
        picture.save(FOLDER / f"{name}.jpg", quality=QUALITY)


if __name__ == "__main__":
    main()
