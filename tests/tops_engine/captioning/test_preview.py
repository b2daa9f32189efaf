"""Test the sheets of pictures beside their captions."""

from PIL import Image

from tops_engine.captioning.preview import MARGIN, PAPER, ROW, WIDTH, Previewed, draw_preview, draw_sheets


def test_a_row_shows_the_picture_and_its_caption() -> None:
    red = Image.new("RGB", (400, 100), (255, 0, 0))
    sheet = draw_preview([Previewed("a.png", red, "A red bar. " * 200), Previewed("b.png", red)])
    assert sheet.size == (WIDTH, MARGIN + 2 * ROW)
    assert sheet.getpixel((MARGIN + 80, MARGIN + 80)) == (255, 0, 0)
    words = [sheet.crop((200, MARGIN + row * ROW + 18, WIDTH, row * ROW + ROW)) for row in range(2)]
    inked = [sum(pixel != PAPER for pixel in part.get_flattened_data()) for part in words]
    assert inked[0] > 5 * inked[1] > 0


def test_a_file_that_is_no_picture_has_its_row() -> None:
    rows = [Previewed("a.png", b"no picture", "Text"), Previewed("b.png", Image.new("RGB", (1, 900)), "Text")]
    assert draw_preview(rows).height == MARGIN + 2 * ROW


def test_sheets_have_one_size() -> None:
    picture = Image.new("RGB", (8, 8))
    sheets = draw_sheets([Previewed(str(number), picture) for number in range(5)], 2)
    assert {sheet.size for sheet in sheets} == {(WIDTH, MARGIN + 2 * ROW)}
    assert len(sheets) == 3
