"""Draw the token maps of several prunings in a grid, with the unpruned picture to their left."""

import textwrap
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tops_engine.answers.report import Answer
from tops_engine.comparison.one_picture import FailedRow, Row
from tops_engine.errors import InvalidInput
from tops_engine.evaluation.prunings import pruning_name
from tops_engine.media.colours import BAD, GOOD, GREY, INK, PAPER, SHADE
from tops_engine.media.lettering import fitted
from tops_engine.media.token_map import MARGIN, PRUNED, UNSEEN

CELL, TALLEST = 300, 600
MOST_COLUMNS = 4

# Heights of texts, in pixels. The name of the pruning and the answer are read in a picture that is scaled down.
TITLE, NAME, TOKENS, ANSWER, GAP = 34, 36, 20, 36, 8
CAPTION = NAME + TOKENS + ANSWER + 4 * GAP
HEADER = TITLE + TOKENS + 4 * GAP
FAULT = (48, 50, 56)


def draw_grid(rows: Sequence[Row | FailedRow], question: str, num_layers: int) -> Image.Image:
    """Draw the first picture of a question unpruned, and beside it the parts that each pruning kept.

    The brightness of a part is the share of the decoder layers that saw its token. If a picture has several views, as
    LLaVA-NeXT's overview and tiles, the view that kept the part longest counts.

    Parameters
    ----------
    rows : the result of :func:`tops_engine.comparison.one_picture.compare_prunings`, the unpruned row first.
    question : the title of the drawing.
    num_layers : the number of the model's decoder layers.

    Raises
    ------
    InvalidInput
        If the question is about a video, which :func:`tops_engine.comparison.video_maps.draw_strips` draws.
    """
    unpruned, pruned = rows[0], rows[1:]
    assert isinstance(unpruned, Row)
    picture = unpruned.answer.token_map.visuals[0]
    if not isinstance(picture, Image.Image):
        raise InvalidInput("The grid shows pictures only; draw a video's token map for each answer separately.")
    scale = min(CELL / picture.width, TALLEST / picture.height)
    picture = picture.resize((max(1, round(scale * picture.width)), max(1, round(scale * picture.height))))
    columns = min(MOST_COLUMNS, len({row.pruning.label for row in pruned}) or 1)
    num_rows = max(1, -(-len(pruned) // columns))
    step_x, step_y = CELL + MARGIN, picture.height + CAPTION
    canvas = Image.new("RGB", (MARGIN + (1 + columns) * step_x, HEADER + num_rows * step_y), PAPER)
    pen = ImageDraw.Draw(canvas)
    title, font = fitted(question, canvas.width - 2 * MARGIN, TITLE)
    pen.text((MARGIN, GAP), title, INK, font)
    legend = (
        "Brightness: the share of the model's layers that see this part. Darkest: pruned before the language model."
    )
    shown, font = fitted(legend, canvas.width - 2 * MARGIN, TOKENS)
    pen.text((MARGIN, TITLE + 2 * GAP), shown, GREY, font)
    _draw_cell(canvas, (MARGIN, HEADER), picture, unpruned)
    for number, row in enumerate(pruned):
        left = MARGIN + (1 + number % columns) * step_x
        corner = (left, HEADER + number // columns * step_y)
        if isinstance(row, Row):
            boxes, share = row.answer.token_map.layouts[0].boxes, layer_share(row.answer, 0, num_layers)
            _draw_cell(canvas, corner, dimmed(picture, boxes, share), row)
        else:
            _draw_failure(canvas, corner, picture.size, row)
    return canvas


def layer_share(answer: Answer, image: int, num_layers: int) -> Tensor:
    """Return the share of the decoder layers that saw each of an image's tokens: float32 [n]."""
    stages = answer.token_map.stages
    ends = [*(layer for layer, _ in stages[1:]), num_layers]
    share = torch.zeros(answer.token_map.layouts[image].num_tokens)
    for (start, kept), end in zip(stages, ends, strict=True):
        share[kept[image]] += (end - start) / num_layers
    return share


def dimmed(picture: Image.Image, boxes: Tensor, share: Tensor) -> Image.Image:
    """Dim a picture, or a frame, by the share of the layers that saw its parts.

    Parameters
    ----------
    boxes : float32 [n, 4], the places of tokens as fractions of the picture.
    share : float32 [n]
    """
    return Image.composite(picture, Image.new("RGB", picture.size, SHADE), _cover(boxes, share, picture.size))


def _cover(boxes: Tensor, share: Tensor, size: tuple[int, int]) -> Image.Image:
    """Return how much of each pixel shows: a grey image of ``size``."""
    width, height = size
    cover = torch.full((height, width), UNSEEN)
    edges = (boxes * torch.tensor([width, height, width, height])).round().int().tolist()
    for (left, top, right, bottom), value in zip(edges, (PRUNED + (1 - PRUNED) * share).tolist(), strict=True):
        cover[top:bottom, left:right].clamp_(min=value)
    return Image.fromarray((255 * cover).round().byte().numpy())


def _draw_cell(canvas: Image.Image, corner: tuple[int, int], panel: Image.Image, row: Row) -> None:
    usage = row.answer.usage
    stages = ", ".join(str(sum(stage.visual_tokens)) for stage in usage.stages)
    pruned = usage.kept_fraction < 1
    tokens = f"{usage.layer_average:.1f} of {usage.visual_tokens} tokens a layer ({stages})"
    heading = pruning_name(row.pruning) if pruned or row.pruning.method != "none" else "unpruned"
    color = GOOD if row.fidelity.agrees else BAD
    _draw_panel(
        canvas,
        corner,
        panel,
        [
            (heading, INK, NAME),
            (tokens if pruned else f"{usage.visual_tokens} visual tokens", GREY, TOKENS),
            (" ".join(row.answer.text.split()), color, ANSWER),
        ],
    )


def _draw_failure(canvas: Image.Image, corner: tuple[int, int], size: tuple[int, int], row: FailedRow) -> None:
    panel = Image.new("RGB", size, FAULT)
    text = "\n".join(textwrap.wrap(row.error, CELL // 9))
    ImageDraw.Draw(panel).multiline_text((10, 10), text, BAD, fitted("", CELL, 16)[1], spacing=6)
    _draw_panel(canvas, corner, panel, [(pruning_name(row.pruning), INK, NAME), ("did not run", GREY, TOKENS)])


def _draw_panel(
    canvas: Image.Image,
    corner: tuple[int, int],
    panel: Image.Image,
    lines: Sequence[tuple[str, tuple[int, int, int], int]],
) -> None:
    left, top = corner
    canvas.paste(panel, corner)
    pen = ImageDraw.Draw(canvas)
    top += panel.height + GAP
    for text, color, size in lines:
        shown, font = fitted(text, CELL, size)
        pen.text((left, top), shown, color, font)
        top += size + GAP
