"""How many tokens providers count for a picture of a size, as their public documentation says."""

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor, inf, sqrt
from typing import Any

CountTokens = Callable[[int, int], int]  # width and height in pixels -> tokens

OPENAI = "https://platform.openai.com/docs/guides/images-vision"
ANTHROPIC = "https://platform.claude.com/docs/en/build-with-claude/vision"
GOOGLE_TILES = "https://firebase.google.com/docs/vertex-ai/input-file-requirements"
GOOGLE_RESOLUTION = "https://ai.google.dev/gemini-api/docs/media-resolution"


@dataclass(frozen=True)
class Formula:
    """The tokens that a provider counts for a picture.

    Attributes:
        count: From width and height in pixels to tokens, of a picture with the default level of detail.
        source: Where it is documented.
        read: When it was read there, as year-month.
        low_detail: Tokens of a picture that is sent with ``detail: "low"``; None if that has no fixed number.
    """

    count: CountTokens
    source: str
    read: str = "2026-11"
    low_detail: int | None = None


def tiles(base: int, per_tile: int) -> CountTokens:
    """Return OpenAI's count by tiles: scaled to fit 2048 x 2048 and to a short side of 768, cut into 512 x 512."""

    def count(width: int, height: int) -> int:
        scale = min(1.0, 2048 / max(width, height), 768 / min(width, height))
        columns, rows = (ceil(round(side * scale, 6) / 512) for side in (width, height))
        return base + per_tile * columns * rows

    return count


def openai_patches(multiplier: float, most: float = inf, longest: float = inf) -> CountTokens:
    """Return OpenAI's count by patches of 32 x 32 pixels.

    Args:
        multiplier: Tokens of a patch.
        most: A picture of more patches is scaled down until the grid of whole patches is at most so large.
        longest: A picture with a longer side, in pixels, is scaled down to it.
    """

    def count(width: int, height: int) -> int:
        scale = min(1.0, longest / max(width, height))
        columns, rows = width * scale / 32, height * scale / 32
        if ceil(round(columns, 6)) * ceil(round(rows, 6)) > most:
            shrink = sqrt(most / (columns * rows))
            columns, rows = columns * shrink, rows * shrink
            shrink = min(max(1, floor(side)) / side for side in (columns, rows))
            columns, rows = columns * shrink, rows * shrink
        return ceil(round(ceil(round(columns, 6)) * ceil(round(rows, 6)) * multiplier, 6))

    return count


def claude_patches(most: int, longest: int) -> CountTokens:
    """Return Anthropic's count by patches of 28 x 28 pixels.

    Args:
        most: A picture of more patches is scaled down to the largest size that has no more.
        longest: A picture with a longer side, in pixels, is scaled down to it.
    """

    def count(width: int, height: int) -> int:
        def number(scale: float) -> int:
            return ceil(round(width * scale / 28, 6)) * ceil(round(height * scale / 28, 6))

        scale = min(1.0, longest / max(width, height))
        return number(scale if number(scale) <= most else _largest(lambda smaller: number(smaller) <= most, scale))

    return count


def gemini_2_tiles(width: int, height: int) -> int:
    """Return the count of Gemini 1.5, 2.0 and 2.5.

    A picture of up to 384 x 384 pixels is 258 tokens. A larger one is cut into tiles of 258 tokens each, whose side is
    the short side of the picture divided by 1.5, but at least 256 and at most 768 pixels.
    """
    if max(width, height) <= 384:
        return 258
    tile = min(768, max(256, floor(min(width, height) / 1.5)))
    return 258 * ceil(width / tile) * ceil(height / tile)


def gemini_3(_width: int, _height: int) -> int:
    """Return the count of Gemini 3: 1120 tokens at the default resolution, whatever the size."""
    return 1120


# Patterns of model names; the first that matches decides. Multipliers are the documented ones. OpenAI's forum reports
# smaller measured ones for gpt-5-mini (1.2) and gpt-5-nano (1.5).
FORMULAS: list[tuple[str, Formula]] = [
    (r"gpt-4o-mini", Formula(tiles(2833, 5667), OPENAI, low_detail=2833)),
    (r"gpt-4\.1-mini", Formula(openai_patches(1.62, 1536), OPENAI)),
    (r"gpt-4\.1-nano", Formula(openai_patches(2.46, 1536), OPENAI)),
    (r"gpt-4o|gpt-4\.1|gpt-4\.5|chatgpt-4o", Formula(tiles(85, 170), OPENAI, low_detail=85)),
    (r"o4-mini", Formula(openai_patches(1.72, 1536), OPENAI)),
    (r"\bo[13](?!-mini)", Formula(tiles(75, 150), OPENAI, low_detail=75)),
    (r"gpt-5-mini", Formula(openai_patches(1.62, 1536), OPENAI)),
    (r"gpt-5-nano", Formula(openai_patches(2.46, 1536), OPENAI)),
    (r"gpt-5(?![.\d])", Formula(tiles(70, 140), OPENAI, low_detail=70)),
    (r"gpt-5\.[2-5].*-(mini|nano)", Formula(openai_patches(1.62, 1536), OPENAI)),
    (r"gpt-5\.[23]", Formula(openai_patches(1.2, 1536), OPENAI)),
    (r"gpt-5\.4", Formula(openai_patches(1.2, 2500, 2048), OPENAI)),
    (r"gpt-5\.5", Formula(openai_patches(1.2, 10000, 6000), OPENAI)),
    (r"gpt-5\.6|gpt-6", Formula(openai_patches(1.2), OPENAI)),
    (r"claude-opus-4-[789]|claude-[a-z]+-5\b", Formula(claude_patches(4784, 2576), ANTHROPIC)),
    (r"claude", Formula(claude_patches(1568, 1568), ANTHROPIC)),
    (r"gemini-(1\.5|2\.[05])", Formula(gemini_2_tiles, GOOGLE_TILES)),
    (r"gemini-3", Formula(gemini_3, GOOGLE_RESOLUTION)),
]


def formula_of(model: Any) -> Formula | None:
    """Return how the provider of a chat model counts pictures; None if that is not documented.

    The provider and the model are those of LangChain's tracing. Ollama documents no formula: it depends on the model.
    """
    params = model._get_ls_params()
    if params.get("ls_provider") == "ollama":
        return None
    name = str(params.get("ls_model_name", "")).lower()
    return next((formula for pattern, formula in FORMULAS if re.search(pattern, name)), None)


def size_within(width: int, height: int, max_tokens: int, count: CountTokens) -> tuple[int, int] | None:
    """Return the largest size that counts at most ``max_tokens``; None if there is none.

    Both sides are scaled by the same number of sixty-fourths. So a picture takes few sizes in the course of a
    conversation, and a provider that caches prompts finds it again.
    """

    def scaled(step: int) -> tuple[int, int]:
        return max(1, round(width * step / 64)), max(1, round(height * step / 64))

    step = bisect_right(range(1, 65), max_tokens, key=lambda step: count(*scaled(step)))
    return scaled(step) if step else None


def _largest(fits: Callable[[float], bool], most: float) -> float:
    """Return the largest scale up to ``most`` that fits, by halving the interval."""
    low, high = 0.0, most
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
