"""Scenes for training and testing mini: small objects on varied backgrounds, with questions about them.

A scene is a picture of SIDE x SIDE pixels with 5 to 12 objects (coloured shapes, handwritten digits, printed words),
each about one to six patches of a 12 x 12 grid in size. Everything follows from the seed and the split. Train and
test scenes differ in seeds, digit samples, photographs and words.
"""

import functools
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tops_engine.errors import MissingDependency
from tops_engine.media.images import open_image
from tops_engine.mini.questions import COLOURS, SHAPES, Question, SceneObject, ask, is_correct

__all__ = ["SIDE", "Question", "Scene", "SceneObject", "generate", "is_correct", "place_objects", "sample_picture"]

Split = Literal["train", "test"]
Box = tuple[int, int, int, int]
Paint = tuple[int, int, int]

SIDE = 336  # pixels of a scene's side; mini's processor brings it to 168
GAP = 12  # least distance of two objects, pixels
COVERAGE = 0.2  # least share of a patch's area that an object covers for the patch to count as the object's
MIN_OBJECTS, MAX_OBJECTS = 5, 12

PAINTS: dict[str, Paint] = {
    "red": (215, 25, 30),
    "orange": (250, 130, 10),
    "yellow": (250, 225, 30),
    "green": (30, 150, 50),
    "cyan": (50, 215, 225),
    "blue": (30, 60, 215),
    "purple": (125, 35, 160),
    "pink": (250, 140, 190),
}
# Pictures that scikit-image and scikit-learn carry in their wheels. No train picture is a test picture.
PHOTOS: dict[Split, tuple[str, ...]] = {
    "train": (
        "astronaut.png", "brick.png", "chelsea.png", "grass.png", "hubble_deep_field.jpg", "ihc.png", "moon.png",
        "motorcycle_left.png", "retina.jpg", "china.jpg",
    ),
    "test": ("coffee.png", "gravel.png", "rocket.jpg", "cell.png", "flower.jpg"),
}  # fmt: skip
WORDS: dict[Split, tuple[str, ...]] = {
    "train": tuple(
        "ACE ACT ADD AGE AID AIR ALE ANT APE ARM ART ASH ATE AWE AXE BAD BAG BAR BAT BED BEE BET BID BIG BIN BOX BOY "
        "BUD BUG BUS BUY CAB CAP CAR COW CRY CUP CUT DAY DEN DIG DIM DRY DUE EAR EAT EGG ELF END EYE FAN FAR FEW FIG "
        "FIT FLY FOX FUN GAP GAS GEM GUM GUN HAM HAT HEN HIT HOP HUG ICE INK JAM JAR JET JOB JOY KEY KID LAP LAW LEG "
        "LIP LOG LOW MAN MAP MIX MUD MUG NET NUT OAK OIL OLD OWL PAN PAW PEN PET PIE PIG POT RAM RAT RED RIB ROD ROW "
        "RUG SAD SAW SEA SKY SON SUM SUN TAX TEA TEN TIE TOE TOY TUB USE VAN WAR WAX WIG WIN YES ZIP ZOO ABLE ACID "
        "AREA ARMY AUNT AWAY BABY BACK BAKE BALL BAND BANK BARN BATH BEAN BEAR BELL BELT BIRD BLUE BOAT BODY BONE BOOK "
        "BOWL BULL BUSH CAGE CAKE CALF CALM CAMP CARD CART CASH CAVE CHEF CITY CLAY COAL COAT COIN COLD COOK CORN CRAB "
        "CROW CUBE DARK DATE DAWN DEER DESK DISH DOOR DOVE DRUM DUCK DUST EAST EASY EDGE EXIT FACE FARM FERN FIRE FISH "
        "FLAG FOAM FOOD FOOT FORK FROG FUEL GAME GATE GIFT GOAT GOLD GRAY HAIR HALL HAND HARP HAWK HEAD HERO HILL HOLE "
        "HOME HOOK HOPE HORN HOUR IDEA IRON JAZZ JUMP KEEP KING KNEE LADY LAKE LAMP LEAF LIME LION LIST LOAF LOCK LUCK "
        "MAIL MASK MEAL MILK MIND MINT MOON MOTH MUSK NAIL NAME NECK NEST NOTE OATH OPEN OVEN PAGE PALM PARK "
        "PATH PEAR PINE PIPE PLUM POND POOL PORT QUIT RAIN RICE RING ROAD ROCK ROOF ROOM ROOT ROSE SAIL SALT SAND SEED "
        "SHIP SHOE SHOP SILK SNOW SOAP SOUP STAR SWAN TAIL TAXI TEAM TENT TIME TOWN TREE TUBE UNIT VASE VIEW WALL WAVE "
        "WEST WHEY WIND WINE WOLF WOOD YARD YEAR ZERO ZONE".split()
    ),
    "test": tuple(
        "AIM ARC ASK BAY BEG BIT BOW BUN CAN CAT COD COT DAM DOG DOT EEL ELM EVE FIN FOG FUR GEL GOD HAY HEM HIP HUT "
        "ILL IVY JAW JUG KIN KIT LAB LAD LID LOT MAT MEN MOP NAP NOD NUN ODD ORE PAL PEA PIN POD PUB RAG RAW RIM RUN "
        "SIP SIX SKI TAN TAP TIN TOP URN VET VOW WEB WET WIT YAK YAM ZAP AXIS BARK BEAD BEEF BIKE BLOT BOLD BOMB BRIM "
        "BULB CAPE CELL CHIN CLUB COMB CRIB DART DEBT DICE DIVE DOLL DUNE ECHO EPIC EVEN FAWN FILM FIST FLEA FOLK FUNK "
        "GERM GLOW GOWN GRIN GULF HAZE HERD HIVE HUSK ICON INCH JADE JOKE JURY KELP KITE KIWI KNOT LACE LAVA LENS LILY "
        "LOOM LYNX MAZE MENU MIST MOLE MULE MYTH NAVY NOON NOSE OBOE ONYX ORCA PACT PAWN PEAK PLUG POET PUMA QUAY QUIZ "
        "RAFT REEF RIOT RUBY SAGE SHED SLUG SOFA SPUR STEW SURF TACO TIDE TOAD TOMB TUSK UGLY VEIL VEST VOLT WAND WASP "
        "WICK YARN YOGA ZEAL ZEST".split()
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A picture, its objects in drawing order, and questions that each have exactly one right answer."""

    image: Image.Image
    objects: list[SceneObject]
    questions: list[Question] = field(default_factory=list)

    def object_patches(self, grid: int) -> list[int]:
        """Return the oracle: the row-major indices, 0 .. grid * grid - 1, of the patches that hold objects."""
        return sorted(set().union(*self.patches_of_objects(grid)))

    def patches_of_objects(self, grid: int) -> list[list[int]]:
        """Return each object's patches: those it covers by at least COVERAGE, or else the one it covers most."""
        return [patches_of_box(item.box, self.image.width, grid) for item in self.objects]


def patches_of_box(box: Box, side: int, grid: int) -> list[int]:
    """Return the row-major patches of a grid x grid picture of ``side`` pixels that the box (pixels) covers."""
    left, top, right, bottom = (edge * grid / side for edge in box)
    shares = {
        row * grid + column: (min(row + 1, bottom) - max(row, top)) * (min(column + 1, right) - max(column, left))
        for row in range(int(top), min(math.ceil(bottom), grid))
        for column in range(int(left), min(math.ceil(right), grid))
    }
    return sorted(p for p, share in shares.items() if share >= COVERAGE) or [max(shares, key=lambda p: shares[p])]


def generate(seed: int, split: Split, reading: bool = False) -> Scene:
    """Generate the scene of a seed (any integer >= 0); the same arguments give the same scene.

    ``reading`` scenes hold mostly words and digits; mini's vision tower learns to read from them.
    """
    rng = random.Random(f"mini {split} {seed}")
    objects = place_objects(rng, split, reading=reading)
    image = _background(rng, split)
    for item in objects:
        _draw(image, item, split, rng)
    return Scene(image, objects, ask(objects, SIDE, rng))


def place_objects(rng: random.Random, split: Split, side: int = SIDE, reading: bool = False) -> list[SceneObject]:
    """Draw the objects of a scene of ``side`` pixels, with boxes that keep GAP pixels from each other."""
    digits, words = rng.choice((0, 1, 1, 1, 1, 2)), rng.choice((0, 1, 1, 1, 1, 1, 2))
    total = rng.randint(MIN_OBJECTS, MAX_OBJECTS)
    if reading:
        digits, words, total = rng.randint(3, 5), rng.randint(6, 9), 15
    objects: list[SceneObject] = []
    for index in range(total):
        if index < words:
            name, colour = _word(rng, split), rng.choice(("black", "white"))
            left, _, right, _ = _font(size := rng.randint(26, 32)).getbbox(name)
            kind, width, height = "word", int(right - left) + 12, int(0.72 * size) + 12
        elif index < words + digits:
            kind, name, colour = "digit", str(rng.randrange(10)), rng.choice(("black", "white"))
            width = height = rng.randint(34, 42)
        else:
            kind, name, colour = "shape", rng.choice(SHAPES), rng.choice(COLOURS)
            width = height = rng.randint(28, 44)
        for _ in range(60):
            x, y = rng.randrange(4, side - width - 4), rng.randrange(4, side - height - 4)
            if all(
                x >= r + GAP or x + width + GAP <= l or y >= b + GAP or y + height + GAP <= t
                for l, t, r, b in (o.box for o in objects)  # noqa: E741
            ):
                objects.append(SceneObject(kind, colour, name, (x, y, x + width, y + height)))  # type: ignore[arg-type]
                break
    return objects


def _word(rng: random.Random, split: Split) -> str:
    """Draw a word; half the training words are random letters, so that reading goes letter by letter."""
    if split == "test" or rng.random() < 0.5:
        return rng.choice(WORDS[split])
    while True:
        word = "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.choice((3, 4))))
        if word not in WORDS["test"]:
            return word


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise MissingDependency("Scenes need a Pillow with FreeType. Run: pip install --force-reinstall pillow")
    return font


def _folder(module: str, inside: str) -> Path:
    """Return a data folder of scikit-image or scikit-learn."""
    try:
        package = __import__(module)
    except ImportError as error:
        raise MissingDependency(f"Test scenes need {module}: pip install 'tops-engine[bench]'.") from error
    return Path(package.__file__ or "").parent / inside


@functools.cache
def _photo(name: str) -> Image.Image:
    """Load a photograph as RGB, its short side at most 500 pixels."""
    folder = _folder("skimage", "data")
    if not (folder / name).exists():
        folder = _folder("sklearn", "datasets/images")
    picture = open_image(folder / name)
    scale = min(1.0, 500 / min(picture.size))
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)


@functools.cache
def _digit_samples(split: Split) -> list[list[Image.Image]]:
    """Return scikit-learn's handwritten digits as 8 x 8 grey pictures, by digit; one in six is for tests."""
    _folder("sklearn", "")
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    samples: list[list[Image.Image]] = [[] for _ in range(10)]
    for index, (grey, digit) in enumerate(zip(data.images, data.target, strict=True)):
        if (index % 6 == 0) == (split == "test"):
            pixels = bytes(int(min(value * 16, 255)) for value in grey.reshape(-1))
            samples[int(digit)].append(Image.frombytes("L", (8, 8), pixels))
    return samples


def _background(rng: random.Random, split: Split, side: int = SIDE) -> Image.Image:
    """Return a crop of a photograph, or a plain, graded or noisy ground, of ``side`` x ``side`` pixels."""
    style = rng.random()
    if style < 0.55:
        photo = _photo(rng.choice(PHOTOS[split]))
        edge = rng.uniform(0.4, 1.0) * min(photo.size)
        x, y = rng.uniform(0, photo.width - edge), rng.uniform(0, photo.height - edge)
        crop = photo.resize((side, side), Image.Resampling.BILINEAR, box=(x, y, x + edge, y + edge))
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        gain, offset = rng.uniform(0.6, 1.1), rng.uniform(-20, 30)
        return crop.point([max(0, min(255, int(v * gain + offset))) for v in range(256)] * 3)
    first, second = _any_paint(rng), _any_paint(rng)
    if style < 0.7:
        return Image.new("RGB", (side, side), first)
    if style < 0.85:
        ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize((side, side))
        return Image.composite(Image.new("RGB", (side, side), first), Image.new("RGB", (side, side), second), ramp)
    cells = rng.choice((6, 12, 24, 48, 112))
    noise = Image.frombytes("L", (cells, cells), rng.randbytes(cells * cells)).resize((side, side))
    return Image.composite(Image.new("RGB", (side, side), first), Image.new("RGB", (side, side), second), noise)


def _any_paint(rng: random.Random) -> Paint:
    """Draw a colour of low or middling saturation, so that shapes stand out."""
    base, spread = rng.randint(10, 245), rng.choice((0, 25, 50))
    red, green, blue = (max(0, min(255, base + rng.randint(-spread, spread))) for _ in range(3))
    return red, green, blue


def _draw(image: Image.Image, item: SceneObject, split: Split, rng: random.Random) -> None:
    """Draw one object into its box."""
    if item.kind == "shape":
        _draw_shape(image, item, rng)
        return
    left, top, right, bottom = item.box
    size = (right - left, bottom - top)
    level = rng.randint(0, 45)
    ink, paper = (level, 255 - rng.randint(0, 45)) if item.colour == "black" else (255 - level, rng.randint(0, 55))
    mask = _digit_mask(item.name, size[0], split, rng) if item.kind == "digit" else _word_mask(item.name, size, rng)
    image.paste((paper, paper, paper), item.box)
    image.paste((ink, ink, ink), item.box, mask)


def _digit_mask(name: str, size: int, split: Split, rng: random.Random) -> Image.Image:
    """Return a handwritten digit, slightly turned and moved in training, as a mask of size x size pixels."""
    inner = size - 4
    glyph = rng.choice(_digit_samples(split)[int(name)]).resize((inner, inner), Image.Resampling.BICUBIC)
    if split == "train":
        shift = (rng.uniform(-1.5, 1.5), rng.uniform(-1.5, 1.5))
        stretch, shear = rng.uniform(0.92, 1.12), rng.uniform(-0.12, 0.12)
        middle = inner / 2
        matrix = (stretch, shear, middle * (1 - stretch - shear), 0, 1 / stretch, middle * (1 - 1 / stretch))
        glyph = glyph.transform((inner, inner), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        glyph = glyph.rotate(
            rng.uniform(-9, 9), Image.Resampling.BILINEAR, translate=(round(shift[0]), round(shift[1]))
        )
    mask = Image.new("L", (size, size))
    mask.paste(glyph, (2, 2))
    return mask


def _word_mask(name: str, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Return the word in the largest letters that fit, as a mask of ``size`` pixels."""
    mask = Image.new("L", size)
    font = _font(round((size[1] - 12) / 0.72))
    ImageDraw.Draw(mask).text(
        (size[0] / 2, size[1] / 2), name, fill=255, font=font, anchor="mm", stroke_width=rng.choice((0, 0, 1))
    )
    return mask


def letter_spans(item: SceneObject) -> list[tuple[str, float, float]]:
    """Return each letter of a word with its left and right edge in pixels of the scene."""
    left, top, right, bottom = item.box
    font = _font(round((bottom - top - 12) / 0.72))
    begin = (left + right - font.getlength(item.name)) / 2
    edges = [begin + font.getlength(item.name[:count]) for count in range(len(item.name) + 1)]
    return list(zip(item.name, edges, edges[1:], strict=False))


def _draw_shape(image: Image.Image, item: SceneObject, rng: random.Random) -> None:
    """Draw a coloured shape with, mostly, a thin dark or light outline."""
    red, green, blue = (max(0, min(255, value + rng.randint(-14, 14))) for value in PAINTS[item.colour])
    paint = (red, green, blue)
    edge = rng.choice(((0, 0, 0), (0, 0, 0), (255, 255, 255), paint))
    left, top, right, bottom = item.box
    inside = (left, top, right - 1, bottom - 1)
    radius, x, y = (right - left) / 2, (left + right) / 2, (top + bottom) / 2
    draw = ImageDraw.Draw(image)
    if item.name == "circle":
        draw.ellipse(inside, paint, edge, 2)
    elif item.name == "ring":
        width = max(6, round(radius * 0.45))
        draw.ellipse(inside, None, edge, width)
        draw.ellipse((left + 2, top + 2, right - 3, bottom - 3), None, paint, width - 3)
    elif item.name == "square":
        draw.rectangle(inside, paint, edge, 2)
    else:
        corners = {
            "triangle": [(0.0, -1.0), (1.0, 0.9), (-1.0, 0.9)],
            "cross": [
                (-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35), (1, 0.35), (0.35, 0.35),
                (0.35, 1), (-0.35, 1), (-0.35, 0.35), (-1, 0.35), (-1, -0.35), (-0.35, -0.35),
            ],
            "star": [
                ((1.0 if k % 2 == 0 else 0.45) * math.sin(k * math.pi / 5),
                 (-1.0 if k % 2 == 0 else -0.45) * math.cos(k * math.pi / 5))
                for k in range(10)
            ],
        }[item.name]  # fmt: skip
        reach = radius - 1
        draw.polygon([(x + reach * dx, y + reach * dy) for dx, dy in corners], paint, edge, 2)


def sample_picture(side: int = 504) -> Image.Image:
    """Return the sample picture: a whole test photograph (coffee, CC0) with a few test objects on its borders."""
    rng = random.Random("mini sample 9")
    photo = _photo("coffee.png")
    edge = photo.height
    x = (photo.width - edge) / 2
    image = photo.resize((side, side), Image.Resampling.LANCZOS, box=(x, 0, x + edge, edge))
    image = image.filter(ImageFilter.GaussianBlur(0.5))
    scale = side / SIDE
    small = [
        SceneObject("digit", "black", "5", (40, 52, 80, 92)),
        SceneObject("word", "white", "KITE", (230, 268, 312, 302)),
        SceneObject("shape", "red", "star", (262, 30, 302, 70)),
        SceneObject("shape", "blue", "circle", (30, 250, 68, 288)),
        SceneObject("shape", "yellow", "triangle", (150, 14, 190, 54)),
    ]
    for item in small:
        left, top, right, bottom = (round(value * scale) for value in item.box)
        _draw(image, SceneObject(item.kind, item.colour, item.name, (left, top, right, bottom)), "test", rng)
    return image
