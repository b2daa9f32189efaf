"""Test `tops verify`: a whole run on mini, and that what is wrong is found and reported."""

import copy
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.conftest import Tops
from tests.support.checkpoints import save_llava, save_llava_next
from tests.support.checkpoints_qwen import save_qwen3_5
from tests.support.short_verify import shorten
from tops_engine.cli import verify as command
from tops_engine.engine import Engine
from tops_engine.settings import ModelSpec
from tops_engine.verification import run
from tops_engine.verification.parity import check_parity
from tops_engine.verification.pictures import conversations
from tops_engine.verification.problems import problems_of
from tops_engine.verification.result import Verification, read_verification
from tops_engine.verification.run import KEEPS, verify


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


@pytest.fixture
def broken_engine(tmp_path: Path) -> Engine:
    """An engine whose output head is not that of the model: it swaps two tokens."""
    engine = Engine.load(ModelSpec(model=str(save_llava(tmp_path / "broken")), device="cpu"))
    family = engine.family
    (first, *_), _ = check_parity(engine, {"no picture": conversations()["no picture"]}, lambda: None)
    assert first.differences == []
    family.decoder.lm_head = copy.deepcopy(family.model.lm_head)
    with torch.no_grad():
        family.decoder.lm_head.weight.copy_(family.model.lm_head.weight.roll(1, dims=0))
    return engine


def test_a_run_on_mini_writes_a_file_a_card_and_a_picture(tops: Tops, tmp_path: Path) -> None:
    result = tops("verify", "mini", "--device", "cpu", "-o", tmp_path)
    assert result.code == 0, result.err
    found = read_verification(tmp_path / "verify-mini.json")
    assert found.held
    assert found.command == "tops verify mini --device cpu"
    assert [case.prompt for case in found.parity] == list(conversations())
    assert all(case.differences == [] and case.skipped is None and case.answer_tokens for case in found.parity)
    assert [case.visual_tokens for case in found.parity] == [0, 144, 144, 144, 144, 288, 432, 288]
    assert [check.keep for check in found.budgets] == list(KEEPS)
    assert all(stage.same for check in found.budgets for stage in check.stages)
    assert [stage.num_kept for stage in found.budgets[0].stages] == [64, 16, 8]
    assert {check.positions for check in found.masked} == {"contiguous", "original"}
    assert [row.keep for row in found.speed] == [1.0, *KEEPS]
    assert [row.visual_tokens for row in found.speed] == [144, 32, 16]
    assert {row.throughput[-1].batch for row in found.speed} == {2}
    assert {row.pruning.split()[0] for row in found.fidelity} >= {"tops", "tops:stages=first", "random"}
    assert all(row.questions == 4 for row in found.fidelity if row.error is None)
    written = (tmp_path / "verify-mini.md").read_text()
    assert "8 of 8 unpruned answers are those of transformers" in written
    assert written.strip() in result.out
    with Image.open(tmp_path / "verify-mini.png") as picture:
        assert picture.width > 600
    assert str(tmp_path) not in (tmp_path / "verify-mini.json").read_text()


@pytest.mark.full
@pytest.mark.parametrize("save", [save_llava_next, save_qwen3_5])
def test_other_families_hold(save: Callable[..., Path], tmp_path: Path) -> None:
    engine = Engine.load(ModelSpec(model=str(save(tmp_path / "checkpoint")), device="cpu"))
    steps: list[tuple[int, int]] = []
    result = verify(engine, "tops verify checkpoint", lambda done, total: steps.append((done, total)))
    assert result.problems == []
    assert result.model == "checkpoint"
    done, totals = zip(*steps, strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {max(done)}
    assert done.count(max(done)) <= 2, "the progress ends before the work does"


def test_another_token_than_that_of_transformers_is_a_problem(
    broken_engine: Engine, tops: Tops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "load_engine", lambda spec: broken_engine)
    result = tops("verify", "broken", "-o", tmp_path)
    assert result.code == command.NOT_HELD
    assert "which rounding does not explain" in result.err
    assert "attach the JSON file" in result.err
    found = read_verification(tmp_path / "verify-broken.json")
    first = found.parity[1].differences[0]
    assert first.where == "alone"
    assert first.position == 0
    assert first.token_ids[1] == first.token_ids[0] + 1
    assert first.margin == pytest.approx(first.transformers_logits[0] - first.transformers_logits[1])
    # The rolled head gives each token the logit of the one before it.
    assert first.engine_logits[1] == pytest.approx(first.transformers_logits[0], abs=1e-3)
    assert not first.tie
    assert not any(check.held for check in found.masked)


def test_equally_likely_tokens_are_a_tie_and_no_problem(broken_engine: Engine) -> None:
    family = broken_engine.family
    messages = {"no picture": conversations()["no picture"]}
    family.decoder.lm_head = family.model.lm_head
    (same,), _ = check_parity(broken_engine, messages, lambda: None)
    assert same.differences == []
    # A second token gets the row of the first one written. Of equals, transformers takes the token with the lower
    # number; in the engine's head the other one is a hair above it.
    tokens = broken_engine.chat(messages["no picture"]).token_ids
    twin = next(token for token in range(50, 100) if token not in tokens)
    with torch.no_grad():
        family.model.lm_head.weight[twin] = family.model.lm_head.weight[tokens[0]]
        family.decoder.lm_head = copy.deepcopy(family.model.lm_head)
        family.decoder.lm_head.weight[max(twin, tokens[0])] *= 1 + 1e-6
    (case,), notes = check_parity(broken_engine, messages, lambda: None)
    assert notes == []
    assert [difference.where for difference in case.differences] == ["alone", "in a batch"]
    assert all(difference.tie and difference.margin == 0 for difference in case.differences)
    assert problems_of([case], [], []) == []


def test_a_prompt_that_does_not_fit_the_context_is_left_out(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "short", max_position_embeddings=64)
    engine = Engine.load(ModelSpec(model=str(folder), device="cpu"))
    asked = {name: conversations()[name] for name in ("no picture", "three pictures")}
    cases, _ = check_parity(engine, asked, lambda: None)
    assert cases[0].skipped is None
    assert "64" in (cases[1].skipped or "")
    assert problems_of(cases, [], []) == []


def test_a_stopped_run_writes_nothing(
    tops: Tops, llava_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "measure_speed", lambda *_: signal.raise_signal(signal.SIGINT))
    result = tops("verify", llava_folder, "--device", "cpu", "-o", tmp_path)
    assert result.code == 130
    assert "Stopped; nothing was written." in result.err
    assert list(tmp_path.iterdir()) == []


def test_files_are_put_side_by_side(tops: Tops, tmp_path: Path) -> None:
    known = Path(__file__).parents[3] / "benchmarks" / "verified" / "mini-cpu.json"
    other = json.loads(known.read_text()) | {"model": "another", "problems": ["Something is wrong."]}
    (tmp_path / "another.json").write_text(json.dumps(other))
    result = tops("verify", "--compare", known, tmp_path / "another.json")
    assert result.code == 0
    assert "mini" in result.out
    assert "another" in result.out
    assert "everything held" in result.out
    assert "Something is wrong." in result.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--compare", "one.json"], "at least two"),
        (["--compare", "one.json", "two.json"], "cannot be read"),
        (["--compare", "bad.json", "bad.json"], "is not a file of `tops verify`"),
        (["mini", "-o", "nowhere"], "There is no folder nowhere"),
        (["mini", "other"], "Give one model"),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(
    arguments: list[str], sentence: str, tops: Tops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text('{"format": "tops verify 0"}')
    result = tops("verify", *arguments)
    assert result.code == 1
    assert sentence in " ".join(result.err.split())


def test_the_schema_describes_every_field() -> None:
    schema: dict[str, Any] = Verification.model_json_schema()
    parts = [schema, *schema["$defs"].values()]
    assert all("description" in field for part in parts for field in part["properties"].values())
