"""Test `tops compare` of one picture: the table, the fidelity and the drawn maps."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import Picture, Tops
from tops_engine.comparison.card import MARGIN as CARD_MARGIN
from tops_engine.comparison.card import PANEL, draw_card
from tops_engine.comparison.maps import CAPTION, CELL, HEADER, draw_grid, layer_share
from tops_engine.comparison.one_picture import FailedRow, Row, compare_prunings
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidImage, InvalidInput
from tops_engine.evaluation.fidelity import divergence
from tops_engine.media.colours import BAD, GOOD, PAPER
from tops_engine.media.token_map import MARGIN
from tops_engine.settings import Generation, Pruning

SHORT = Generation(max_tokens=3)


@pytest.fixture(scope="module")
def rows(llava_engine: Engine, picture: Picture) -> list[Row | FailedRow]:
    prunings = [Pruning(method="tops", keep=8), Pruning(method="fastv", keep=0.2), Pruning(method="random", keep=0.25)]
    return compare_prunings(llava_engine, [user_message("What?", picture(56, 56))], prunings, SHORT, repeats=2)


def answered(row: Row | FailedRow) -> Row:
    assert isinstance(row, Row)
    return row


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_compare_prints_the_unpruned_model_first_and_says_why_a_method_did_not_run(
    tops: Tops, llava_folder: Path, picture: Picture, tmp_path: Path
) -> None:
    picture().save(tmp_path / "photo.png")
    grid = (
        "--methods",
        "tops, fastv,random",
        "--keep",
        "8,0.2",
        "--repeats",
        1,
        "--map",
        tmp_path / "maps.png",
        "--card",
        tmp_path / "card.png",
    )
    options = ("--model", llava_folder, "--device", "cpu", "--max-tokens", 2)
    result = tops("compare", tmp_path / "photo.png", "What?", *options, *grid)

    assert result.code == 0
    comparison = result.out.partition("Where the time goes")[0].splitlines()
    lines = {cells(line)[0]: cells(line)[1:] for line in comparison if line.strip()}
    names = ["unpruned", "tops 8", "fastv 8", "random 8", "tops 0.2", "fastv 0.2", "random 0.2"]
    assert [name for name in lines if name in names] == names
    # First token and total in ms, GFLOPs, layer-average, loss increase, KL, whether the answer is the same.
    assert lines["unpruned"][3:7] == ["16.0", "0.000", "0.000", "yes"]
    assert lines["tops 8"][3] == lines["random 8"][3] == "8.0"
    for name in set(names) - {"fastv 0.2"}:
        first, total, flops, *_ = map(float, lines[name][:3])
        assert 0 < first <= total
        assert flops > 0
    assert lines["fastv 0.2"] == ["[1]"]
    assert "[1] keep=0.2 cannot be met by pruning at layer 2 of 8" in result.out
    with Image.open(tmp_path / "card.png") as card:
        assert card.width == 2 * PANEL + 3 * CARD_MARGIN
    with Image.open(tmp_path / "maps.png") as drawn:
        # The unpruned picture and three methods; two budgets.
        assert drawn.size == (MARGIN + 4 * (CELL + MARGIN), HEADER + 2 * (CELL + CAPTION))


def test_without_pruning_nothing_changes_and_the_time_parts_add_up(rows: list[Row | FailedRow]) -> None:
    unpruned = answered(rows[0])
    assert unpruned.fidelity.model_dump() == {"agrees": True, "loss_increase": 0.0, "first_token_kl": 0.0}
    parts = [unpruned.seconds[part] for part in ("prepare", "vision", "selection", "prefill")]
    assert unpruned.seconds["first_token"] == pytest.approx(sum(parts), rel=0.2)


def test_fidelity_is_that_of_the_pruned_models_own_probabilities(
    rows: list[Row | FailedRow], llava_engine: Engine, picture: Picture
) -> None:
    messages = [user_message("What?", picture(56, 56))]
    reference = [answered(rows[0]).answer.token_ids]
    pruning = Pruning(method="random", keep=0.25)
    (plain,) = llava_engine.scored_batch([messages], Pruning(method="none"), SHORT, reference)
    (pruned,) = llava_engine.scored_batch([messages], pruning, SHORT, reference)

    p, q = plain.first_token.exp().tolist(), pruned.first_token.exp().tolist()
    kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    row = answered(rows[3])
    assert row.fidelity.first_token_kl == pytest.approx(kl, rel=1e-3)
    assert row.fidelity.loss_increase == pytest.approx(pruned.loss - plain.loss, abs=1e-6)
    assert row.fidelity.agrees == (row.answer.text.strip() == answered(rows[0]).answer.text.strip())


def test_divergence_of_impossible_tokens_is_exact() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.5, 0.25])
    assert divergence(p.log(), q.log()) == pytest.approx(0.5 * math.log(2))
    assert divergence(q.log(), p.log()) == math.inf
    assert math.isnan(divergence(torch.tensor([math.nan, 0.0]), torch.tensor([0.0, 0.0])))


def test_a_part_is_as_bright_as_the_share_of_layers_that_saw_it(rows: list[Row | FailedRow]) -> None:
    answer = answered(rows[1]).answer
    share = layer_share(answer, 0, 8)
    expected = np.zeros(16)
    # 8 layers: tokens of each stage count for as many layers as it lasts.
    starts = [layer for layer, _ in answer.token_map.stages]
    for (start, kept), end in zip(answer.token_map.stages, [*starts[1:], 8], strict=True):
        for token in kept[0].tolist():
            expected[token] += end - start
    np.testing.assert_allclose(share.numpy(), expected / 8, atol=1e-6)
    assert float(share.sum()) == pytest.approx(answer.usage.layer_average, abs=1e-5)

    grid = np.asarray(draw_grid(rows, "What?", 8))
    panel = grid[HEADER : HEADER + CELL, 2 * MARGIN + CELL : 2 * MARGIN + 2 * CELL].mean(axis=2)
    brightness = panel.reshape(4, CELL // 4, 4, CELL // 4).mean(axis=(1, 3)).flatten()
    assert brightness[share.argmax()] > brightness[share.argmin()] + 20


def test_the_grid_holds_a_long_question_and_any_shape_of_picture(llava_engine: Engine, picture: Picture) -> None:
    for size in ((200, 20), (20, 200)):
        messages = [user_message("What?", picture(*size))]
        rows = compare_prunings(llava_engine, messages, [Pruning(keep=0.5)], SHORT, repeats=1)
        drawn = np.asarray(draw_grid(rows, "Is this a very long question? " * 40, 8))
        assert (drawn[:, -2:] == PAPER).all()


def test_the_picture_to_share_takes_the_fewest_tokens_whose_answer_is_the_same(rows: list[Row | FailedRow]) -> None:
    pruned = [row for row in rows[1:] if isinstance(row, Row)]
    best, other = pruned[0], pruned[1]
    same = dataclasses.replace(best, fidelity=best.fidelity.model_copy(update={"agrees": True}))
    differs = dataclasses.replace(other, fidelity=other.fidelity.model_copy(update={"agrees": False}))
    card = draw_card([rows[0], differs, same], "What? " * 90, 8, "mini")
    assert card.size[0] == 2 * PANEL + 3 * CARD_MARGIN
    assert card.tobytes() == draw_card([rows[0], same], "What? " * 90, 8, "mini").tobytes()
    assert card.tobytes() != draw_card([rows[0], differs], "What? " * 90, 8, "mini").tobytes()
    pixels = np.asarray(card)
    assert (pixels == GOOD).all(axis=2).any()
    assert not (pixels == BAD).all(axis=2).any()
    assert (np.asarray(draw_card([rows[0], differs], "What?", 8)) == BAD).all(axis=2).any()
    with pytest.raises(InvalidInput, match="nothing to share"):
        draw_card([rows[0]], "What?", 8)


def test_an_unpruned_model_that_cannot_answer_is_an_error(llava_engine: Engine) -> None:
    with pytest.raises(InvalidImage):
        compare_prunings(llava_engine, [user_message("What?", "/nowhere.png")], [Pruning()], SHORT)


def test_a_path_that_leads_nowhere_is_called_that(tops: Tops, tmp_path: Path) -> None:
    for questions in (("What?",), ("--prompts", tmp_path / "prompts.txt")):
        result = tops("compare", tmp_path / "nowhere", *questions, "--model", "mini")
        assert result.code == 1
        assert "There is no picture or folder" in result.err


def test_every_timed_answer_is_read_from_its_beginning(llava_engine: Engine, picture: Picture) -> None:
    messages = [user_message("What?", picture(56, 56))]
    rows = compare_prunings(llava_engine, messages, [Pruning(keep=0.5), Pruning(keep=0.25)], SHORT, repeats=2)
    assert [row.answer.usage.reused_tokens for row in rows if isinstance(row, Row)] == [0, 0, 0]
