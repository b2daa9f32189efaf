"""How the models of each family write boxes and points, and from there to pixels of the original picture."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tops_engine.grounding.places import Box, Place, Places, Point
from tops_engine.grounding.written import (
    Reader,
    Written,
    answer_boxes,
    json_objects,
    locations,
    marked,
    molmo_points,
    point_tags,
)

Size = tuple[float, float]


@dataclass(frozen=True)
class Format:
    """How a model writes places in a picture.

    Attributes
    ----------
    examples : of what it writes.
    full : the coordinate of the picture's right and lower edge; None if coordinates are pixels of the picture as the
        image processor scales it.
    readers : find them in a text. What one finds is not looked for by those behind it.
    rows_first : whether y stands before x.
    source : where the format is documented.
    """

    examples: tuple[str, ...]
    full: float | None
    readers: tuple[Reader, ...]
    source: str
    rows_first: bool = False

    @property
    def unit(self) -> str:
        """What a coordinate counts, in words."""
        order = "y before x" if self.rows_first else "x before y"
        if self.full is None:
            return f"pixels of the picture as the processor scales it, {order}"
        return f"0 to {self.full:g} over the whole side, {order}"

    def read(self, text: str, sizes: Sequence[tuple[int, int]], scaled: Sequence[Size]) -> Places:
        """Return the boxes and points that an answer names.

        What is malformed, outside its picture or in no picture is left out. Corners in another order are sorted, and
        boxes that reach over an edge are cut there.

        Parameters
        ----------
        text : the answer, with its special tokens.
        sizes : width and height of the pictures, in pixels.
        scaled : their width and height in the unit of the coordinates.
        """
        places = [
            place
            for written in _found(self.readers, text)
            if (place := self._placed(written, sizes, scaled)) is not None
        ]
        boxes = tuple(place for place in places if isinstance(place, Box))
        points = tuple(place for place in places if isinstance(place, Point))
        return Places(boxes, points, tuple(sizes))

    def _placed(self, written: Written, sizes: Sequence[tuple[int, int]], scaled: Sequence[Size]) -> Place | None:
        number = len(sizes) - 1 if written.picture is None else written.picture
        if not 0 <= number < len(sizes):
            return None
        values = written.values
        xs, ys = (values[1::2], values[::2]) if self.rows_first else (values[::2], values[1::2])
        (width, height), (full_width, full_height) = sizes[number], scaled[number]
        xs, ys = tuple(width * x / full_width for x in xs), tuple(height * y / full_height for y in ys)
        if len(xs) == 1:
            inside = 0 <= xs[0] <= width and 0 <= ys[0] <= height
            point = Point(label=written.label, picture=number, x=_rounded(xs[0]), y=_rounded(ys[0]))
            return point if inside else None
        (left, right), (top, bottom) = _cut(xs, width), _cut(ys, height)
        box = Box(label=written.label, picture=number, left=left, top=top, right=right, bottom=bottom)
        return box if left < right and top < bottom else None


def _found(readers: Iterable[Reader], text: str) -> list[Written]:
    """Return what the readers find, without what an earlier one found."""
    found: list[Written] = []
    for reader in readers:
        known = {written.values for written in found}
        found += [written for written in reader(text) if written.values not in known]
    return found


def _cut(edges: Iterable[float], side: int) -> tuple[float, float]:
    first, last = sorted(_rounded(min(max(edge, 0.0), side)) for edge in edges)
    return first, last


def _rounded(pixels: float) -> float:
    return round(pixels, 2)


QWEN2 = Format(
    ("<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>",),
    1000,
    (marked, json_objects),
    "Qwen-VL and Qwen2-VL papers; QwenLM/Qwen3-VL issue 663",
)
QWEN2_5 = Format(
    ('{"bbox_2d": [100, 200, 300, 400], "label": "cat"}', '{"point_2d": [100, 200], "label": "cat"}'),
    None,
    (json_objects, point_tags),
    "Qwen2.5-VL report; its cookbook spatial_understanding",
)
QWEN3 = Format(
    ('{"bbox_2d": [100, 200, 300, 400], "label": "cat"}', '{"point_2d": [100, 200], "label": "cat"}'),
    1000,
    (json_objects, point_tags),
    "QwenLM/Qwen3-VL, cookbook 2d_grounding, issues 1486 and 1741; Qwen3.5 and 3.8 alike",
)
INTERNVL = Format(
    ("<ref>cat</ref><box>[[100, 200, 300, 400]]</box>",),
    1000,
    (marked, json_objects),
    "internvl.readthedocs.io, chat data format; OpenGVLab/InternVL issue 285",
)
GLM = Format(
    ("<|begin_of_box|>[[100, 200, 300, 400]]<|end_of_box|>", '{"bbox_2d": [100, 200, 300, 400], "label": "cat"}'),
    1000,
    (json_objects, answer_boxes),
    "zai-org/GLM-V, skill glmv-grounding",
)
GEMMA = Format(
    ('{"box_2d": [200, 100, 400, 300], "label": "cat"}', '{"point": [200, 100], "label": "cat"}'),
    1000,
    (json_objects,),
    "Gemini's documentation of bounding boxes; not documented for Gemma 3",
    rows_first=True,
)
LFM2 = Format(
    ('{"label": "cat", "bbox": [0.1, 0.2, 0.3, 0.4]}',),
    1,
    (json_objects,),
    "model card of LFM2.5-VL; LFM2-VL is not trained for it",
)
MINICPM = Format(
    ("<ref>cat</ref><box>100 200 300 400</box>", "<point>100 200</point>"),
    1000,
    (marked,),
    "OpenBMB/MiniCPM-V issues 185, 772 and 982",
)
MOLMO2 = Format(
    ('<points coords="1 1 100 200 2 300 400">cats</points>',),
    1000,
    (molmo_points,),
    "allenai/Molmo2",
)
PALIGEMMA = Format(
    ("<loc0200><loc0100><loc0400><loc0300> cat",),
    1024,
    (locations,),
    "google-research/big_vision, PaliGemma",
    rows_first=True,
)
