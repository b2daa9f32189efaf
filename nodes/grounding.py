"""TOPS Boxes."""

import json
from typing import Any

from PIL import Image
from torch import Tensor

from tops_engine.errors import InvalidInput
from tops_engine.grounding.drawing import drawn, mask
from tops_engine.grounding.places import Box, Places
from tops_engine.media.token_map import TokenMap

from .pictures import to_image, to_mask
from .sockets import STATS, Stats, answer_at, expect

#: ComfyUI's type: one box, or a list of the boxes of each picture.
BOUNDING_BOX = "BOUNDING_BOX"


class Boxes:
    """Show the boxes and points that an answer names."""

    NODE_ID = "TOPSBoxes"
    TITLE = "TOPS Boxes (detect, mask)"
    CATEGORY = "TOPS"
    DESCRIPTION = (
        "Reads the boxes and points that an answer names, such as an answer to 'Find each cat, as JSON with bbox_2d', "
        "and gives them as bounding boxes, as a mask and drawn on the pictures."
    )
    SEARCH_ALIASES = [
        "bbox",
        "bounding box",
        "grounding",
        "detection",
        "pointing",
        "locate",
        "find object",
        "segment",
        "vlm",
    ]
    RETURN_TYPES = ("IMAGE", "MASK", BOUNDING_BOX, BOUNDING_BOX, "STRING", "STRING")
    RETURN_NAMES = ("image", "mask", "bboxes", "box", "points", "report")
    OUTPUT_TOOLTIPS = (
        "The pictures of the question with the boxes and points, in their own size.",
        "A mask for each picture: 1 in boxes and around points.",
        "The boxes of each picture in its pixels, with their labels: for Draw BBoxes and SAM3 Detect.",
        "One of the boxes, for Crop Image; the whole picture if the answer names no box.",
        'The points as JSON, [{"x": 10, "y": 20, "label": "cat", "picture": 0}], for SAM3 Detect.',
        "Each box and point in a line.",
    )
    FUNCTION = "read"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "stats": (STATS, {"tooltip": "From any TOPS node that asks a model."}),
                "number": (
                    "INT",
                    {"default": 0, "min": 0, "max": 4095, "tooltip": "Which box goes to the output box, from 0."},
                ),
            },
            "optional": {
                "answer": (
                    "INT",
                    {"default": 0, "min": 0, "max": 65535, "tooltip": "Which answer of a batch of captions, from 0."},
                ),
            },
        }

    def read(
        self, stats: Stats, number: int, answer: int = 0
    ) -> tuple[Tensor, Tensor, list[list[dict[str, Any]]], dict[str, Any], str, str]:
        one = answer_at(expect(stats, Stats, "stats", "the stats of TOPS Ask"), answer)
        if one.token_map is None:
            raise InvalidInput(
                "TOPS Boxes reads the answers of models on this machine, and a server wrote this one; "
                "connect a TOPS Load Model without a server."
            )
        places = one.token_map.places
        if not places.sizes:
            raise InvalidInput("There is no picture in these stats; ask about a picture first.")
        chosen = _bounding_box(_box_at(places, number))
        pictures = _pictures(one.token_map)
        of_each = [places.of_picture(index) for index in range(len(pictures))]
        canvas = max(width for width, _ in places.sizes), max(height for _, height in places.sizes)
        bboxes = [[_bounding_box(box) for box in of_one.boxes] for of_one in of_each]
        return (
            to_image([drawn(picture, of_one) for picture, of_one in zip(pictures, of_each, strict=True)]),
            to_mask([mask(canvas, of_one) for of_one in of_each]),
            bboxes,
            chosen,
            json.dumps([point.model_dump() for point in places.points], ensure_ascii=False),
            _report(places),
        )


def _pictures(token_map: TokenMap) -> list[Image.Image]:
    """Return the pictures of the question in the size in which they were given."""
    pictures = [visual for visual in token_map.visuals if isinstance(visual, Image.Image)]
    sizes = token_map.places.sizes
    return [one if one.size == size else one.resize(size) for one, size in zip(pictures, sizes, strict=True)]


def _box_at(places: Places, number: int) -> Box:
    if not places.boxes:
        width, height = places.sizes[0]
        return Box(left=0, top=0, right=width, bottom=height)
    if number >= len(places.boxes):
        raise InvalidInput(f"There is no box {number}; the answer names {len(places.boxes)}, counted from 0.")
    return places.boxes[number]


def _bounding_box(box: Box) -> dict[str, Any]:
    """Return a box as ComfyUI's nodes for detection write it, in whole pixels."""
    x, y = int(box.left), int(box.top)
    size = {"width": max(1, round(box.right) - x), "height": max(1, round(box.bottom) - y)}
    return {"x": x, "y": y, **size, "label": box.label}


def _report(places: Places) -> str:
    lines = [
        f"{box.label or 'box'}: {box.left:g}, {box.top:g} to {box.right:g}, {box.bottom:g} (picture {box.picture})"
        for box in places.boxes
    ]
    lines += [
        f"{point.label or 'point'}: {point.x:g}, {point.y:g} (picture {point.picture})" for point in places.points
    ]
    return "\n".join(lines) or "The answer names no boxes and no points."
