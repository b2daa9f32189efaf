"""Draw what several prunings kept of a video, a strip of frames for each."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from tops_engine.comparison.maps import dimmed, layer_share
from tops_engine.comparison.one_picture import FailedRow, Row
from tops_engine.errors import InvalidInput
from tops_engine.evaluation.prunings import pruning_name
from tops_engine.media.colours import BAD, GREY, INK, PAPER
from tops_engine.media.frame_strip import draw_strip
from tops_engine.media.token_map import MARGIN
from tops_engine.media.videos import Video

WIDTH, HEADER, HEADING = 1100, 52, 64


def draw_strips(rows: Sequence[Row | FailedRow], question: str, num_layers: int) -> Image.Image:
    """Draw the frames of a video unpruned, and below what each pruning kept of them.

    The brightness of a part is the share of the decoder layers that saw its token. A bar is the number of tokens that a
    frame keeps, as a layer-average.

    Parameters
    ----------
    rows : the result of :func:`tops_engine.comparison.one_picture.compare_prunings` for a question about a video, the
        unpruned row first.
    question : the title of the drawing.
    num_layers : the number of the model's decoder layers.

    Raises
    ------
    InvalidInput
        If the question is about a picture.
    """
    strips = [_strip(row, num_layers) if isinstance(row, Row) else None for row in rows]
    heights = [HEADING + (0 if strip is None else strip.height) + MARGIN for strip in strips]
    canvas = Image.new("RGB", (WIDTH + 2 * MARGIN, HEADER + sum(heights)), PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((MARGIN, 10), question, INK, ImageFont.load_default(30))
    top = HEADER
    for row, strip, height in zip(rows, strips, heights, strict=True):
        heading, line, color = _heading(row)
        pen.text((MARGIN, top), heading, INK, ImageFont.load_default(26))
        pen.text((MARGIN, top + 34), line, color, ImageFont.load_default(20))
        if strip is not None:
            canvas.paste(strip, (MARGIN, top + HEADING))
        top += height
    return canvas


def _strip(row: Row, num_layers: int) -> Image.Image:
    answer = row.answer
    layout, video = answer.token_map.layouts[0], answer.token_map.visuals[0]
    if layout.frame is None or not isinstance(video, Video):
        raise InvalidInput("Strips of frames show a video; draw a grid for a picture.")
    frames, of_tokens, share = answer.usage.pictures[0].frames, layout.frame, layer_share(answer, 0, num_layers)

    def picture_of(place: int) -> Image.Image:
        shown = of_tokens == frames[place].frame
        return dimmed(video.frames[frames[place].frame], layout.boxes[shown], share[shown])

    kept = [frame.layer_average for frame in frames]
    least, most = (f"{round(value, 1):g}" for value in (min(kept), max(kept)))
    caption = f"{least} to {most} of {frames[0].visual_tokens} tokens a frame, {len(frames)} frames"
    return draw_strip(picture_of, kept, WIDTH, caption)


def _heading(row: Row | FailedRow) -> tuple[str, str, tuple[int, int, int]]:
    if isinstance(row, FailedRow):
        return f"{pruning_name(row.pruning)} did not run", row.error, BAD
    usage = row.answer.usage
    name = pruning_name(row.pruning) if usage.kept_fraction < 1 else "unpruned"
    tokens = f"{usage.layer_average:.1f} of {usage.visual_tokens} tokens a layer"
    return name, f"{tokens}; {' '.join(row.answer.text.split())}", GREY
