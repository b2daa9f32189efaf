"""Test `tops bias`: how often each place is kept, for pictures of any size."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import Picture, Tops
from tops_engine.comparison.position_bias import cell_cover, gini, measure_position_bias, normalised_entropy
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput
from tops_engine.evaluation.data_set import DataSet
from tops_engine.media.layout import VisualLayout, grid_boxes
from tops_engine.settings import Generation, Pruning


def layout(boxes: torch.Tensor) -> VisualLayout:
    return VisualLayout(boxes, torch.zeros(len(boxes)).long(), ((1, len(boxes)),))


def test_tokens_are_mapped_by_the_area_they_cover() -> None:
    # Two tokens on four columns: each covers two of them wholly; one a third of the picture: one cell and a third.
    halves = cell_cover(layout(grid_boxes(1, 2)), 4).view(2, 4, 4)
    assert halves[0].tolist() == [[1, 1, 0, 0]] * 4
    assert halves[1].tolist() == [[0, 0, 1, 1]] * 4
    third = cell_cover(layout(torch.tensor([[0.0, 0.0, 1 / 3, 0.5], [0, 0, 0, 0]])), 4).view(2, 4, 4)
    torch.testing.assert_close(third[0, 0], torch.tensor([1, 1 / 3, 0, 0]), atol=1e-6, rtol=0)
    assert third[0, 2:].sum() == 0
    assert third[1].sum() == 0, "a newline token lies nowhere"


def test_gini_and_entropy_against_their_definitions() -> None:
    values = torch.rand(30, generator=torch.Generator().manual_seed(0))
    numbers = values.tolist()
    pairs = sum(abs(a - b) for a in numbers for b in numbers)
    assert gini(values) == pytest.approx(pairs / (2 * 30 * sum(numbers)), abs=1e-6)
    shares = [value / sum(numbers) for value in numbers]
    assert normalised_entropy(values) == pytest.approx(-sum(p * math.log(p) for p in shares) / math.log(30), abs=1e-6)
    assert gini(torch.ones(7)) == pytest.approx(0)
    assert normalised_entropy(torch.ones(7)) == pytest.approx(1)
    one = torch.zeros(10)
    one[3] = 2
    assert gini(one) == pytest.approx(0.9)
    assert normalised_entropy(one) == 0.0


@pytest.fixture
def folder(tmp_path: Path, picture: Picture) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, size in enumerate([(56, 56), (112, 56), (56, 84), (70, 70)]):
        picture(*size, number).save(folder / f"{number}.png")
    return folder


def test_frequencies_are_those_of_the_tokens_left_in_the_last_layer(llava_engine: Engine, folder: Path) -> None:
    (folder / "1.png").unlink()
    (folder / "2.png").unlink()
    (bias,) = measure_position_bias(llava_engine, DataSet.read(folder, None, "What?"), [Pruning(keep=0.5)], grid=4)
    counts = torch.zeros(16)
    for path in sorted(folder.iterdir()):
        answer = llava_engine.chat([user_message("What?", path)], Pruning(keep=0.5), Generation(max_tokens=1))
        counts[answer.token_map.stages[-1][1][0]] += 1
    # Square pictures of 4 x 4 tokens on a grid of 4 x 4.
    torch.testing.assert_close(bias.frequency.flatten(), counts / 2, atol=1e-5, rtol=0)
    assert bias.gini == pytest.approx(gini(counts), abs=1e-5)


def test_random_choice_is_as_even_as_chance_and_a_fixed_one_is_not(llava_engine: Engine, tmp_path: Path) -> None:
    for number in range(30):
        Image.new("RGB", (56, 56), (8 * number, 100, 50)).save(tmp_path / f"{number}.png")
    data = DataSet.read(tmp_path, None, "What?")
    prunings = [
        Pruning(method="random", keep=4),
        Pruning(method="random", keep=4, selection_seed=3),
        Pruning(method="fastv", keep=0.1),
    ]
    drawn, fixed, failed = measure_position_bias(llava_engine, data, prunings, grid=8)
    assert drawn.gini == pytest.approx(drawn.chance_gini, abs=0.08)
    assert fixed.gini == pytest.approx(12 / 16, abs=1e-3)
    assert fixed.gini > fixed.chance_gini + 0.3
    assert float(drawn.frequency.mean()) == pytest.approx(4 / 16, abs=1e-5)
    assert "cannot be met" in str(failed.error)
    with pytest.raises(InvalidInput, match="cannot be met"):
        measure_position_bias(llava_engine, data, prunings[2:])


def test_the_command_writes_a_heat_map_of_each_and_all(
    tops: Tops, llava_next_folder: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("What is this?\nWhich colour?\n")
    (folder / "bad.png").write_bytes(b"bad")
    model = ("--model", llava_next_folder, "--device", "cpu", "--prompts", tmp_path / "prompts.txt")
    target = tmp_path / "bias"
    result = tops("bias", folder, *model, "--methods", "tops:alpha=0.2,random", "-o", target)
    assert result.code == 0, result.err
    assert "Places kept in 8 questions" in result.out
    assert "Skipped bad.png" in result.err
    assert sorted(path.name for path in target.iterdir()) == ["all.png", "random-0.222.png", "tops-alpha=0.2-0.222.png"]
    for path in target.iterdir():
        with Image.open(path) as drawn:
            drawn.load()
            assert drawn.width > 300

    result = tops("bias", folder, *model, "-o", folder / "0.png")
    assert result.code == 1
    assert "The folder" in result.err
