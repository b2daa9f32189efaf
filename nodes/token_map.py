"""TOPS Token Map."""

from typing import Any

from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from tops_engine.answers.base import TokenCounts
from tops_engine.errors import InvalidInput
from tops_engine.media.token_map import PRUNED, TokenMap

from .pictures import to_image, to_mask
from .sockets import STATS, Stats, answer_at, expect, within

TINT, OUTLINE = (255, 140, 0), (255, 255, 255)


class TokenMapPicture:
    """Show the tokens that were kept."""

    NODE_ID = "TOPSTokenMap"
    TITLE = "TOPS Token Map (what was kept)"
    CATEGORY = "TOPS"
    DESCRIPTION = "Shows which parts of the picture the model kept, as a picture and as a mask for other nodes."
    SEARCH_ALIASES = ["attention map", "heatmap", "explain", "saliency mask", "kept tokens"]
    RETURN_TYPES = ("IMAGE", "MASK", "STRING")
    RETURN_NAMES = ("image", "mask", "report")
    OUTPUT_TOOLTIPS = (
        "The picture in the chosen style.",
        "1 where tokens were kept, in the picture's size.",
        "Tokens kept at each stage.",
    )
    FUNCTION = "draw"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        styles = (
            "dim: pruned parts dark. tint: kept parts coloured. outline: kept parts framed. cutout: pruned parts "
            f"white. {ALL_STAGES}: the picture beside every stage."
        )
        return {
            "required": {
                "stats": (STATS, {"tooltip": "From any TOPS node that asks a model."}),
                "style": ([*STYLES, ALL_STAGES], {"default": "dim", "tooltip": styles}),
                "stage": (
                    "INT",
                    {"default": -1, "min": -16, "max": 15, "tooltip": "0 is the first stage, -1 the last."},
                ),
                "picture": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 4095,
                        "tooltip": "Which picture (or frame) of the question, from 0.",
                    },
                ),
            },
            "optional": {
                "answer": (
                    "INT",
                    {"default": 0, "min": 0, "max": 65535, "tooltip": "Which answer of a batch of captions, from 0."},
                ),
            },
        }

    def draw(self, stats: Stats, style: str, stage: int, picture: int, answer: int = 0) -> tuple[Tensor, Tensor, str]:
        one = answer_at(expect(stats, Stats, "stats", "the stats of TOPS Ask"), answer)
        if one.token_map is None or one.usage is None:
            raise InvalidInput(
                "TOPS Token Map needs to know which tokens were kept, and a server does not say; "
                "connect a TOPS Load Model without a server."
            )
        shown = _pictures(one.token_map)
        visual, frame, original = shown[within(picture, len(shown), "picture")]
        mask = one.token_map.mask(visual, _stage(stage, len(one.token_map.stages)), frame=frame)
        mask = mask.resize(original.size, Image.Resampling.NEAREST)
        drawn = one.token_map.draw() if style == ALL_STAGES else STYLES[style](original, mask)
        return to_image([drawn]), to_mask([mask]), _report(one.usage)


def _pictures(token_map: TokenMap) -> list[tuple[int, int, Image.Image]]:
    """Return every picture and every frame of a video: number of the visual, number of the frame, picture.

    A picture has the size in which it was given, not the one to which TOPS Load Model scaled it.
    """
    shown: list[tuple[int, int, Image.Image]] = []
    given_sizes = iter(token_map.places.sizes)
    for number, visual in enumerate(token_map.visuals):
        if isinstance(visual, Image.Image):
            shown.append((number, 0, visual.resize(next(given_sizes, visual.size))))
        else:
            shown += [(number, frame, picture) for frame, picture in enumerate(visual.frames)]
    return shown


def _stage(stage: int, count: int) -> int:
    if not -count <= stage < count:
        raise InvalidInput(f"There is no stage {stage}; this answer has {count}: 0 to {count - 1}, or -1 for the last.")
    return stage % count


def _report(usage: TokenCounts) -> str:
    lines = [f"{usage.unpruned_visual_tokens} visual tokens"]
    lines += [f"from layer {stage.layer}: {sum(stage.visual_tokens)} kept" for stage in usage.stages]
    return "\n".join([*lines, f"layer-average {usage.layer_average:.1f}"])


def _dim(picture: Image.Image, mask: Image.Image) -> Image.Image:
    return Image.composite(picture, picture.point(lambda value: value * PRUNED), mask)


def _tint(picture: Image.Image, mask: Image.Image) -> Image.Image:
    tinted = Image.blend(picture, Image.new("RGB", picture.size, TINT), 0.45)
    return Image.composite(tinted, picture, mask)


def _outline(picture: Image.Image, mask: Image.Image) -> Image.Image:
    edge = ImageChops.difference(mask.filter(ImageFilter.MaxFilter(3)), mask.filter(ImageFilter.MinFilter(3)))
    return Image.composite(Image.new("RGB", picture.size, OUTLINE), _dim(picture, mask), edge)


def _cutout(picture: Image.Image, mask: Image.Image) -> Image.Image:
    return Image.composite(picture, Image.new("RGB", picture.size, "white"), mask)


STYLES = {"dim": _dim, "tint": _tint, "outline": _outline, "cutout": _cutout}
ALL_STAGES = "side by side"
