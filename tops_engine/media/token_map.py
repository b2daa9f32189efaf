"""The picture of what was kept: each picture or frame beside itself at each stage, pruned parts dimmed."""

from dataclasses import dataclass, field

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tops_engine.grounding.drawing import drawn
from tops_engine.grounding.places import Places
from tops_engine.media.colours import GREY, INK, PAPER, SHADE
from tops_engine.media.frame_strip import draw_strip
from tops_engine.media.layout import VisualLayout
from tops_engine.media.lettering import fitted
from tops_engine.media.videos import Video, evenly

PANEL, TALLEST = 320, 1280
MOST_FRAMES = 8
MARGIN = 12

# Sizes in pixels. The numbers are read in a picture that is scaled down to 256 pixels, the other texts in full size.
TITLE, NUMBERS, DETAILS = 40, 58, 22
HEADER, CAPTION = TITLE + 22, NUMBERS + DETAILS + 30

# Brightness left to what was pruned, and to what the model never saw because its processor crops.
PRUNED, UNSEEN = 0.22, 0.08


@dataclass(frozen=True)
class _Row:
    """A row of the map: a view of picture ``index``, or a frame of video ``index``."""

    index: int
    view: int
    frame: int | None


@dataclass(frozen=True)
class TokenMap:
    """Which visual tokens of each picture and video remained at each stage.

    Attributes
    ----------
    visuals : the pictures, scaled to ``ModelSpec(min_pixels, max_pixels)``, and the videos.
    layouts : where the tokens of each lie.
    stages : (layer, kept), kept[i] int64 [k] on the CPU, ascending: the tokens of visual i that remain from there on.
    title : one line above the picture.
    places : the boxes and points that the answer names, in the pixels of the pictures as they were given.
    """

    visuals: list[Image.Image | Video]
    layouts: list[VisualLayout]
    stages: list[tuple[int, list[Tensor]]]
    title: str
    places: Places = field(default_factory=Places)

    def draw(self) -> Image.Image:
        """Draw the originals, with the answer's boxes and points, in the first column, then a column per stage.

        A row per picture (and view: LLaVA-NeXT has two); of a video, a row for each of up to 8 frames, spread evenly.
        Above them is a strip for each video and stage, with a bar for each frame.
        """
        rows = self._rows()
        sizes = [_panel_size(self._picture(row)) for row in rows]
        width = MARGIN + (1 + len(self.stages)) * (PANEL + MARGIN)
        strips = self._strips(width - 2 * MARGIN)
        above = HEADER + sum(strip.height + MARGIN for strip in strips)
        canvas = Image.new("RGB", (width, above + sum(height + CAPTION for _, height in sizes) + MARGIN), PAPER)
        pen = ImageDraw.Draw(canvas)
        title, font = fitted(self.title, width - 2 * MARGIN, TITLE)
        pen.text((MARGIN, HEADER // 2), title, INK, font, anchor="lm")
        top = HEADER
        for strip in strips:
            canvas.paste(strip, (MARGIN, top))
            top += strip.height + MARGIN
        for row, size in zip(rows, sizes, strict=True):
            picture = self._picture(row).resize(size, Image.Resampling.LANCZOS)
            panels = [(self._with_places(picture, row), *self._original_caption(row))]
            for layer, kept in self.stages:
                panels.append(
                    (self._dimmed(picture, row, kept[row.index]), *self._caption(layer, row, kept[row.index]))
                )
            for column, (panel, numbers, details) in enumerate(panels):
                left, below = MARGIN + column * (PANEL + MARGIN), top + picture.height + 6
                canvas.paste(panel, (left, top))
                for text, colour, height in ((numbers, INK, NUMBERS), (details, GREY, DETAILS)):
                    shown, font = fitted(text, PANEL, height)
                    pen.text((left, below), shown, colour, font)
                    below += height + 6
            top += picture.height + CAPTION
        return canvas

    def mask(self, visual: int, stage: int, view: int = 0, frame: int = 0) -> Image.Image:
        """Draw the kept parts of a picture, or of a frame of a video, at a stage: white on black, in its own size."""
        row = _Row(visual, view, None if self.layouts[visual].frame is None else frame)
        kept = self.stages[stage][1][visual]
        return self._cover(self._picture(row).size, row, kept, kept_value=255, pruned_value=0, unseen_value=0)

    def pictures_with_places(self) -> list[Image.Image]:
        """Return each picture, without the videos, with the boxes and points that the answer names in it."""
        pictures = [visual for visual in self.visuals if isinstance(visual, Image.Image)]
        return [drawn(one, self.places.of_picture(number, one.size)) for number, one in enumerate(pictures)]

    def _with_places(self, picture: Image.Image, row: _Row) -> Image.Image:
        if row.frame is not None or not self.places:
            return picture
        number = sum(isinstance(visual, Image.Image) for visual in self.visuals[: row.index])
        return drawn(picture, self.places.of_picture(number, picture.size))

    def _rows(self) -> list[_Row]:
        rows = []
        for index, layout in enumerate(self.layouts):
            if layout.frame is None:
                rows += [_Row(index, view, None) for view in range(len(layout.grids))]
            else:
                frames = self._frame_rows(index)
                rows += [frames[place] for place in evenly(len(frames), MOST_FRAMES)]
        return rows

    def _frame_rows(self, index: int) -> list[_Row]:
        """Return a row for every frame of a video that has tokens."""
        frame = self.layouts[index].frame
        numbers = [] if frame is None else frame.tolist()
        return [_Row(index, 0, number) for number in sorted({number for number in numbers if number >= 0})]

    def _strips(self, width: int) -> list[Image.Image]:
        """Draw a strip of the frames of each video at each stage."""
        return [
            self._strip(self._frame_rows(index), layer, kept[index], width)
            for index, layout in enumerate(self.layouts)
            if layout.frame is not None
            for layer, kept in self.stages
        ]

    def _strip(self, rows: list[_Row], layer: int, kept: Tensor, width: int) -> Image.Image:
        members = [self._tokens(row) for row in rows]
        counts = [int(tokens[kept].sum()) for tokens in members]
        where = "before the LLM" if layer == 0 else f"from layer {layer}"
        caption = (
            f"{where}: {min(counts)} to {max(counts)} of {int(members[0].sum())} tokens a frame, {len(rows)} frames"
        )
        return draw_strip(
            lambda number: self._dimmed(self._picture(rows[number]), rows[number], kept), counts, width, caption
        )

    def _picture(self, row: _Row) -> Image.Image:
        visual = self.visuals[row.index]
        return visual if isinstance(visual, Image.Image) else visual.frames[row.frame or 0]

    def _tokens(self, row: _Row) -> Tensor:
        """Return which of the visual's tokens belong to the row: bool [n]."""
        layout = self.layouts[row.index]
        if layout.frame is None or row.frame is None:
            return layout.view == row.view
        return layout.frame == row.frame

    def _dimmed(self, picture: Image.Image, row: _Row, kept: Tensor) -> Image.Image:
        cover = self._cover(picture.size, row, kept, 255, round(255 * PRUNED), round(255 * UNSEEN))
        return Image.composite(picture, Image.new("RGB", picture.size, SHADE), cover)

    def _cover(
        self, size: tuple[int, int], row: _Row, kept: Tensor, kept_value: int, pruned_value: int, unseen_value: int
    ) -> Image.Image:
        """Return how much of each pixel shows: a grey image of ``size``."""
        layout = self.layouts[row.index]
        shown = torch.zeros(layout.num_tokens, dtype=torch.bool)
        shown[kept] = True
        cover = Image.new("L", size, unseen_value)
        pen = ImageDraw.Draw(cover)
        scale = torch.tensor([size[0], size[1], size[0], size[1]])
        edges = (layout.boxes * scale).round().int()
        for token in (self._tokens(row) & (layout.boxes[:, 2] > layout.boxes[:, 0])).nonzero().flatten().tolist():
            left, top, right, bottom = edges[token].tolist()
            if right > left and bottom > top:
                value = kept_value if shown[token] else pruned_value
                pen.rectangle((left, top, right - 1, bottom - 1), fill=value)
        return cover

    def _name(self, row: _Row) -> str:
        if row.frame is not None:
            return f"frame {row.frame + 1}, "
        if len(self.layouts[row.index].grids) == 1:
            return ""
        return "overview, " if row.view == 0 else "tiles, "

    def _original_caption(self, row: _Row) -> tuple[str, str]:
        rows, columns = self.layouts[row.index].grids[row.view]
        visual, numbers = self.visuals[row.index], f"{int(self._tokens(row).sum())} tokens"
        if isinstance(visual, Video) and row.frame is not None:
            when = f"frame {row.frame + 1} of {len(visual.frames)}, {visual.timestamps[row.frame]:.1f} s"
            return numbers, f"{when}, {columns} x {rows} grid"
        return numbers, f"{self._name(row)}{columns} x {rows} grid"

    def _caption(self, layer: int, row: _Row, kept: Tensor) -> tuple[str, str]:
        tokens = self._tokens(row)
        count, total = int(tokens[kept].sum()), int(tokens.sum())
        where = "before the LLM" if layer == 0 else f"from layer {layer}"
        return f"{count} of {total}", f"{self._name(row)}{where} ({100 * count / total:.1f} %)"


def _panel_size(image: Image.Image) -> tuple[int, int]:
    """Return the size of a panel: of full width, or narrower if that would be too tall."""
    scale = min(PANEL / image.width, TALLEST / image.height)
    return max(1, round(scale * image.width)), max(1, round(scale * image.height))
