"""One picture to share: a question before and after pruning, with the tokens that were saved in the headline."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from tops_engine.comparison.maps import dimmed, layer_share
from tops_engine.comparison.one_picture import FailedRow, Row
from tops_engine.errors import InvalidInput
from tops_engine.evaluation.prunings import pruning_name
from tops_engine.media.colours import BAD, GOOD, GREY, INK, PAPER
from tops_engine.media.lettering import fitted

PANEL, TALLEST, MARGIN, GAP = 580, 640, 20, 10

# Heights of texts, in pixels: legible in a picture that is scaled down to 256 pixels, but for the last line.
HEADLINE, NUMBERS, ANSWER, DETAILS = 64, 60, 60, 26


def draw_card(rows: Sequence[Row | FailedRow], question: str, num_layers: int, model: str = "") -> Image.Image:
    """Draw the first picture of a question as the unpruned model and as the most frugal good pruning see it.

    That pruning is the one with the fewest tokens among those whose answer is the unpruned model's; if there is none,
    the one with the fewest tokens, and the headline says that the answer is another one.

    Parameters
    ----------
    rows : the result of :func:`tops_engine.comparison.one_picture.compare_prunings`, the unpruned row first.
    num_layers : the number of the model's decoder layers.
    model : its name, for the last line.

    Raises
    ------
    InvalidInput
        If no pruning ran, or the question is about a video.
    """
    unpruned, pruned = rows[0], _most_frugal(rows[1:])
    assert isinstance(unpruned, Row)
    picture = unpruned.answer.token_map.visuals[0]
    if not isinstance(picture, Image.Image):
        raise InvalidInput("The picture to share shows a picture; of a video, draw the map.")
    scale = min(PANEL / picture.width, TALLEST / picture.height)
    picture = picture.resize((max(1, round(scale * picture.width)), max(1, round(scale * picture.height))))
    boxes, share = pruned.answer.token_map.layouts[0].boxes, layer_share(pruned.answer, 0, num_layers)
    above = HEADLINE + 2 * MARGIN
    height = above + picture.height + NUMBERS + ANSWER + DETAILS + 5 * GAP + MARGIN
    canvas = Image.new("RGB", (2 * PANEL + 3 * MARGIN, height), PAPER)
    _write(canvas, (MARGIN, MARGIN), canvas.width - 2 * MARGIN, _headline(pruned), HEADLINE, INK)
    for column, (row, panel) in enumerate(((unpruned, picture), (pruned, dimmed(picture, boxes, share)))):
        left, top = MARGIN + column * (PANEL + MARGIN), above
        canvas.paste(panel, (left, top))
        top += panel.height + GAP
        _write(canvas, (left, top), PANEL, _numbers(row), NUMBERS, INK)
        answer = " ".join(row.answer.text.split())
        _write(canvas, (left, top + NUMBERS + GAP), PANEL, answer, ANSWER, GOOD if row.fidelity.agrees else BAD)
    details = f"{question}  ·  {model + ', ' if model else ''}{pruning_name(pruned.pruning)}  ·  TOPS Engine"
    _write(canvas, (MARGIN, height - MARGIN - DETAILS), canvas.width - 2 * MARGIN, details, DETAILS, GREY)
    return canvas


def _most_frugal(rows: Sequence[Row | FailedRow]) -> Row:
    pruned = [row for row in rows if isinstance(row, Row) and row.answer.usage.kept_fraction < 1]
    if not pruned:
        raise InvalidInput(
            "No pruning ran, so that there is nothing to share; compare at least one method below keep=1."
        )
    return min(pruned, key=lambda row: (not row.fidelity.agrees, row.answer.usage.layer_average))


def _headline(row: Row) -> str:
    usage = row.answer.usage
    times = usage.visual_tokens / usage.layer_average
    return f"{times:.1f}x fewer visual tokens, {'same' if row.fidelity.agrees else 'another'} answer"


def _numbers(row: Row) -> str:
    usage = row.answer.usage
    return (
        f"{usage.layer_average:.0f} of {usage.visual_tokens}"
        if usage.kept_fraction < 1
        else f"{usage.visual_tokens} tokens"
    )


def _write(
    canvas: Image.Image, corner: tuple[int, int], width: int, text: str, size: int, colour: tuple[int, int, int]
) -> None:
    shown, font = fitted(text, width, size)
    ImageDraw.Draw(canvas).text(corner, shown, colour, font)
