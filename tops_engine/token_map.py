"""The picture of what was kept: the image beside itself at each stage, pruned parts dimmed."""

from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tops_engine.layout import VisualLayout

PANEL, TALLEST = 320, 1280
MARGIN = 12
CAPTION = 40
HEADER = 36
INK, PAPER = (30, 34, 42), (250, 250, 248)

# Brightness left to what was pruned, and to what the model never saw because its processor crops.
PRUNED, UNSEEN = 0.22, 0.08


@dataclass(frozen=True)
class TokenMap:
    """Which visual tokens of each image remained at each stage.

    Attributes
    ----------
    images : the pictures, as they were opened.
    layouts : where each image's tokens lie.
    stages : (layer, kept), kept[i] int64 [k] on the CPU, ascending: the tokens of image i that remain from there on.
    title : one line above the picture.
    """

    images: list[Image.Image]
    layouts: list[VisualLayout]
    stages: list[tuple[int, list[Tensor]]]
    title: str

    def draw(self) -> Image.Image:
        """Originals in the first column, then a column per stage; a row per image (and view: LLaVA-NeXT has two)."""
        rows = [(index, view) for index, layout in enumerate(self.layouts) for view in range(len(layout.grids))]
        sizes = [_panel_size(self.images[index]) for index, _ in rows]
        width = MARGIN + (1 + len(self.stages)) * (PANEL + MARGIN)
        canvas = Image.new("RGB", (width, HEADER + sum(height + CAPTION for _, height in sizes) + MARGIN), PAPER)
        pen = ImageDraw.Draw(canvas)
        pen.text((MARGIN, 10), self.title, INK, ImageFont.load_default(16))
        top = HEADER
        for (index, view), size in zip(rows, sizes, strict=True):
            picture = self.images[index].resize(size, Image.Resampling.LANCZOS)
            panels = [(picture, self._original_caption(index, view))]
            for layer, kept in self.stages:
                panels.append(
                    (self._dimmed(picture, index, view, kept[index]), self._caption(layer, index, view, kept))
                )
            for column, (panel, caption) in enumerate(panels):
                left = MARGIN + column * (PANEL + MARGIN)
                canvas.paste(panel, (left, top))
                pen.text((left, top + picture.height + 6), caption, INK, ImageFont.load_default(13))
            top += picture.height + CAPTION
        return canvas

    def mask(self, image: int, stage: int, view: int = 0) -> Image.Image:
        """The kept parts of an image at a stage, white on black, in the picture's own size."""
        picture = self.images[image]
        kept = self.stages[stage][1][image]
        return self._cover(picture.size, image, view, kept, kept_value=255, pruned_value=0, unseen_value=0)

    def _dimmed(self, picture: Image.Image, index: int, view: int, kept: Tensor) -> Image.Image:
        cover = self._cover(picture.size, index, view, kept, 255, round(255 * PRUNED), round(255 * UNSEEN))
        return Image.composite(picture, Image.new("RGB", picture.size, (12, 14, 20)), cover)

    def _cover(
        self,
        size: tuple[int, int],
        index: int,
        view: int,
        kept: Tensor,
        kept_value: int,
        pruned_value: int,
        unseen_value: int,
    ) -> Image.Image:
        """How much of each pixel shows: a grey image of ``size``."""
        layout = self.layouts[index]
        shown = torch.zeros(layout.num_tokens, dtype=torch.bool)
        shown[kept] = True
        cover = Image.new("L", size, unseen_value)
        pen = ImageDraw.Draw(cover)
        scale = torch.tensor([size[0], size[1], size[0], size[1]])
        edges = (layout.boxes * scale).round().int()
        for token in ((layout.view == view) & (layout.boxes[:, 2] > layout.boxes[:, 0])).nonzero().flatten().tolist():
            left, top, right, bottom = edges[token].tolist()
            if right > left and bottom > top:
                value = kept_value if shown[token] else pruned_value
                pen.rectangle((left, top, right - 1, bottom - 1), fill=value)
        return cover

    def _view_name(self, index: int, view: int) -> str:
        if len(self.layouts[index].grids) == 1:
            return ""
        return "overview, " if view == 0 else "tiles, "

    def _original_caption(self, index: int, view: int) -> str:
        rows, columns = self.layouts[index].grids[view]
        count = int((self.layouts[index].view == view).sum())
        return f"{self._view_name(index, view)}{count} visual tokens, {columns} x {rows} grid"

    def _caption(self, layer: int, index: int, view: int, kept: list[Tensor]) -> str:
        in_view = self.layouts[index].view == view
        count, total = int(in_view[kept[index]].sum()), int(in_view.sum())
        where = "before the LLM" if layer == 0 else f"from layer {layer}"
        return f"{self._view_name(index, view)}{where}: {count} of {total} ({100 * count / total:.1f} %)"


def _panel_size(image: Image.Image) -> tuple[int, int]:
    """As wide as a panel, or narrower where that would be too tall."""
    scale = min(PANEL / image.width, TALLEST / image.height)
    return max(1, round(scale * image.width)), max(1, round(scale * image.height))
