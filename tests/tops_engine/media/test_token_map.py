"""Test the drawn map and the mask: bright for kept tokens, dim for pruned ones, dark outside all tokens."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.conftest import Picture
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.media.colours import BAR, INK, PAPER
from tops_engine.media.frame_strip import BARS, draw_strip
from tops_engine.media.layout import VisualLayout, frame_layout, grid_boxes
from tops_engine.media.token_map import CAPTION, HEADER, MARGIN, PANEL, PRUNED, UNSEEN, TokenMap
from tops_engine.media.videos import Video
from tops_engine.settings import Generation, Pruning

GREY = (200, 180, 160)
DARK = (12, 14, 20)


def layout(rows: int, columns: int, area: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)) -> VisualLayout:
    view = torch.zeros(rows * columns, dtype=torch.int64)
    return VisualLayout(grid_boxes(rows, columns, area), view, ((rows, columns),))


def two_views() -> VisualLayout:
    """Return a small LLaVA-NeXT map: an overview of 2 x 2, and tiles of 2 x 4 with a newline token after each row."""
    tiles = torch.zeros(10, 4)
    tiles[[0, 1, 2, 3, 5, 6, 7, 8]] = grid_boxes(2, 4)
    view = torch.cat([torch.zeros(4), torch.ones(10)]).long()
    return VisualLayout(torch.cat([grid_boxes(2, 2), tiles]), view, ((2, 2), (2, 4)))


def kept(*tokens: int) -> Tensor:
    return torch.tensor(tokens, dtype=torch.int64)


def token_map(layouts: list[VisualLayout], size: tuple[int, int], *stages: tuple[int, list[Tensor]]) -> TokenMap:
    return TokenMap([Image.new("RGB", size, GREY) for _ in layouts], layouts, list(stages), "A title")


def panel(drawn: Image.Image, column: int, top: int, height: int = PANEL) -> np.ndarray:
    left = MARGIN + column * (PANEL + MARGIN)
    return np.asarray(drawn.crop((left, top, left + PANEL, top + height)))


def shades(pixels: np.ndarray) -> str:
    """Return one letter for each pixel, row by row: k(ept), p(runed), u(nseen), or ? for anything else."""
    rows = []
    for row in pixels.tolist():
        letters = ""
        for pixel in row:
            close = [
                letter
                for letter, share in (("k", 1.0), ("p", PRUNED), ("u", UNSEEN))
                if all(
                    abs(value - (share * grey + (1 - share) * dark)) < 2
                    for value, grey, dark in zip(pixel, GREY, DARK, strict=True)
                )
            ]
            letters += close[0] if close else "?"
        rows.append(letters)
    return " ".join(rows)


def test_the_mask_is_white_exactly_on_the_kept_tokens() -> None:
    mask = np.asarray(token_map([layout(2, 3)], (30, 20), (0, [kept(1, 3)])).mask(0, 0))

    expected = np.zeros((20, 30), dtype=np.uint8)
    expected[:10, 10:20] = 255
    expected[10:, :10] = 255
    assert (mask == expected).all()


def test_the_masks_of_the_stages_follow_what_each_kept() -> None:
    two = token_map([layout(2, 2)], (20, 20), (0, [kept(0, 3)]), (3, [kept(3)]))

    assert [np.asarray(two.mask(0, stage)).sum() // 255 for stage in (0, 1)] == [200, 100]


def test_tokens_of_uneven_pixels_tile_the_picture_without_gaps_or_overlaps() -> None:
    size, grid = (37, 23), layout(5, 7)
    masks = [np.asarray(token_map([grid], size, (0, [kept(token)])).mask(0, 0)) for token in range(35)]

    assert (np.sum(masks, axis=0, dtype=np.int64) == 255).all()


def test_what_a_centre_crop_cuts_off_is_never_white() -> None:
    cropped = token_map([layout(2, 2, (0.25, 0.0, 0.75, 1.0))], (80, 40), (0, [kept(0, 1, 2, 3)]))
    mask = np.asarray(cropped.mask(0, 0))

    assert (mask[:, 20:60] == 255).all()
    assert (mask[:, :20] == 0).all()
    assert (mask[:, 60:] == 0).all()


def test_panels_show_the_picture_then_each_stage_with_the_pruned_parts_dimmed() -> None:
    drawn = token_map([layout(2, 2)], (64, 64), (0, [kept(1, 2)]), (3, [kept(2)])).draw()

    assert drawn.size == (MARGIN + 3 * (PANEL + MARGIN), HEADER + PANEL + CAPTION + MARGIN)
    # One pixel in each quarter.
    quarters = np.s_[PANEL // 4 :: PANEL // 2, PANEL // 4 :: PANEL // 2]
    assert shades(panel(drawn, 0, HEADER)[quarters]) == "kk kk"
    assert shades(panel(drawn, 1, HEADER)[quarters]) == "pk kp"
    assert shades(panel(drawn, 2, HEADER)[quarters]) == "pp kp"


def test_the_border_between_kept_and_pruned_lies_on_the_pixel() -> None:
    drawn = token_map([layout(2, 2)], (64, 64), (0, [kept(1, 2)])).draw()
    middle = PANEL // 2

    assert shades(panel(drawn, 1, HEADER)[middle - 1 : middle + 1, middle - 1 : middle + 1]) == "pk kp"


def test_a_wide_picture_keeps_its_shape_and_its_crop_is_darkest() -> None:
    drawn = token_map([layout(1, 2, (0.25, 0.0, 0.75, 1.0))], (100, 50), (0, [kept(1)])).draw()
    row = panel(drawn, 1, HEADER, PANEL // 2)[PANEL // 4 : PANEL // 4 + 1, PANEL // 8 :: PANEL // 4]

    assert drawn.height == HEADER + PANEL // 2 + CAPTION + MARGIN
    assert shades(row) == "upku"


def test_each_view_of_llava_next_has_its_own_row() -> None:
    # Of the overview its first token, of the tiles the third of the first row, and a newline, which shows nothing.
    drawn = token_map([two_views()], (64, 64), (0, [kept(0, 4 + 2, 4 + 4)])).draw()

    assert drawn.height == HEADER + 2 * (PANEL + CAPTION) + MARGIN
    overview, tiles = panel(drawn, 1, HEADER), panel(drawn, 1, HEADER + PANEL + CAPTION)
    assert shades(overview[PANEL // 4 :: PANEL // 2, PANEL // 4 :: PANEL // 2]) == "kp pp"
    assert shades(tiles[PANEL // 4 :: PANEL // 2, PANEL // 8 :: PANEL // 4]) == "ppkp pppp"


def test_the_mask_of_each_view_holds_that_views_tokens() -> None:
    both = token_map([two_views()], (40, 20), (0, [kept(0, 4 + 2, 4 + 4)]))
    overview, tiles = np.asarray(both.mask(0, 0, view=0)), np.asarray(both.mask(0, 0, view=1))

    assert (overview[:10, :20] == 255).all()
    assert (tiles[:10, 20:30] == 255).all()
    assert (overview == 255).sum() == 200
    assert (tiles == 255).sum() == 100


def test_each_picture_of_a_question_has_its_own_row_and_its_own_kept_tokens() -> None:
    drawn = token_map([layout(2, 2), layout(2, 2)], (64, 64), (0, [kept(0), kept(3)])).draw()
    quarters = np.s_[PANEL // 4 :: PANEL // 2, PANEL // 4 :: PANEL // 2]

    assert shades(panel(drawn, 1, HEADER)[quarters]) == "kp pp"
    assert shades(panel(drawn, 1, HEADER + PANEL + CAPTION)[quarters]) == "pp pk"


@pytest.mark.parametrize(
    ("size", "height"), [((1, 1), PANEL), ((5000, 1), 1), ((1, 4), 4 * PANEL), ((1, 5000), 4 * PANEL)]
)
def test_extreme_shapes_are_drawn_no_taller_than_four_panels(size: tuple[int, int], height: int) -> None:
    drawn = token_map([layout(4, 4)], size, (0, [kept(5)])).draw()

    assert drawn.height == HEADER + height + CAPTION + MARGIN


def test_the_title_and_a_caption_under_each_panel_are_written() -> None:
    drawn = np.asarray(token_map([layout(2, 2)], (64, 64), (0, [kept(1, 2)])).draw())

    for area in (drawn[:HEADER], *(drawn[HEADER + PANEL :, left : left + PANEL] for left in (0, PANEL + 2 * MARGIN))):
        assert (area == INK).all(axis=2).any()
        assert (area[-2:] == PAPER).all()


def test_the_map_of_an_answer_shows_as_many_tokens_as_its_usage_counts(llava_engine: Engine, picture: Picture) -> None:
    messages = [user_message("What is this?", picture(), picture(112, 56, seed=1))]
    answer = llava_engine.chat(messages, Pruning(keep=0.3), Generation(max_tokens=1))

    assert len(answer.usage.stages) == 3
    for index, stage in enumerate(answer.usage.stages):
        areas = [(np.asarray(answer.token_map.mask(image, index)) == 255).sum() for image in (0, 1)]
        # A token is a patch of 14 x 14 pixels in both: the second picture is cropped, not scaled.
        assert areas == [count * 14 * 14 for count in stage.visual_tokens]


def video_map(num_frames: int, *stages: tuple[int, list[Tensor]]) -> TokenMap:
    """Return the map of a video with 2 x 2 tokens a frame and one token at the end that shows no frame."""
    video = Video([Image.new("RGB", (64, 64), GREY)] * num_frames, [float(t) for t in range(num_frames)], 99, 99.0)
    frames = frame_layout(num_frames, grid_boxes(2, 2), (2, 2))
    assert frames.frame is not None
    end = torch.tensor([-1])
    layout = VisualLayout(
        torch.cat([frames.boxes, torch.zeros(1, 4)]),
        torch.cat([frames.view, torch.zeros_like(end)]),
        frames.grids,
        torch.cat([frames.frame, end]),
    )
    return TokenMap([video], [layout], list(stages), "A title")


def first_row(drawn: Image.Image, num_rows: int) -> int:
    """Return where the rows of frames begin, below the strip."""
    return drawn.height - MARGIN - num_rows * (PANEL + CAPTION)


def test_each_frame_of_a_video_has_its_own_row_and_its_own_kept_tokens() -> None:
    drawn = video_map(2, (0, [kept(0, 4 + 3, 8)])).draw()
    quarters = np.s_[PANEL // 4 :: PANEL // 2, PANEL // 4 :: PANEL // 2]

    top = first_row(drawn, 2)
    assert top > HEADER + BARS
    assert shades(panel(drawn, 1, top)[quarters]) == "kp pp"
    assert shades(panel(drawn, 1, top + PANEL + CAPTION)[quarters]) == "pp pk"


def test_of_a_long_video_eight_frames_are_drawn_from_the_first_to_the_last() -> None:
    drawn = video_map(50, (0, [kept(0, 4 * 49 + 3)])).draw()
    quarters = np.s_[PANEL // 4 :: PANEL // 2, PANEL // 4 :: PANEL // 2]
    top = first_row(drawn, 8)
    rows = [shades(panel(drawn, 1, top + row * (PANEL + CAPTION))[quarters]) for row in range(8)]

    assert HEADER + BARS < top < HEADER + PANEL
    assert rows == ["kp pp", *["pp pp"] * 6, "pp pk"]


def test_the_mask_of_a_frame_holds_that_frames_tokens() -> None:
    both = video_map(2, (0, [kept(0, 1, 4 + 2)]))
    first, second = (np.asarray(both.mask(0, 0, frame=frame)) for frame in (0, 1))

    assert (first[:32] == 255).all()
    assert (first == 255).sum() == 64 * 32
    assert (second[32:, :32] == 255).all()
    assert (second == 255).sum() == 32 * 32


def test_a_token_of_several_frames_is_drawn_on_the_first_of_them() -> None:
    layout = frame_layout(2, grid_boxes(1, 1), (1, 1), frame_step=2)
    video = Video([Image.new("RGB", (8, 8), GREY)] * 4, [0.0, 1.0, 2.0, 3.0], 4, 4.0)

    assert layout.frame is not None
    assert layout.frame.tolist() == [0, 2]
    drawn = TokenMap([video], [layout], [(0, [kept(1)])], "A title").draw()
    middles = [panel(drawn, 1, first_row(drawn, 2) + row * (PANEL + CAPTION))[160:161, 160:161] for row in range(2)]
    assert [shades(pixel) for pixel in middles] == ["p", "k"]


def test_the_strip_has_a_bar_for_each_frame_as_high_as_its_tokens() -> None:
    strip = draw_strip(lambda number: Image.new("RGB", (40, 30), GREY), [4, 0, 2, 1], 400, "A caption")
    bars = (np.asarray(strip) == BAR).all(axis=2)
    heights = [int(bars[:, 100 * frame + 50].sum()) for frame in range(4)]
    assert heights == [BARS, 0, BARS // 2, BARS // 4]


def test_a_strip_shows_the_frames_from_the_first_to_the_last() -> None:
    asked: list[int] = []

    def frame(number: int) -> Image.Image:
        asked.append(number)
        return Image.new("RGB", (40, 30), GREY)

    assert draw_strip(frame, [1.0] * 64, 960, "").size[0] == 960
    assert (len(asked), asked[0], asked[-1]) == (12, 0, 63)
    asked.clear()
    draw_strip(frame, [0.0], 960, "nothing is kept")
    assert asked == [0]


def test_a_map_has_a_strip_for_each_stage_of_a_video() -> None:
    one, two = (video_map(3, *[(layer, [kept(0, 5)]) for layer in range(stages)]) for stages in (1, 2))
    count = [
        int((np.asarray(drawn.draw()) == BAR).all(axis=2).any(axis=1).astype(int).clip(0, 1).sum())
        for drawn in (one, two)
    ]
    assert count == [BARS, 2 * BARS]
