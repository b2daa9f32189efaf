"""Test `tops compare --recommend`: which candidates are asked on, and what is recommended and why."""

import json
import random
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from tests.conftest import Tops
from tops_engine.comparison.folder import compare_folder
from tops_engine.comparison.recommendation import Candidate, Recommendation, recommend
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, InvalidInput
from tops_engine.evaluation.data_set import DataSet
from tops_engine.mini.scenes import generate
from tops_engine.settings import Generation, ModelSpec, Pruning
from tops_engine.settings.labels import read_prunings

SHORT = Generation(max_tokens=3)
CANDIDATES = "trim, divprune, random, fastv"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(ModelSpec(model="mini", device="cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes; two questions about each are in a file beside the folder."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    folder.mkdir()
    for seed in range(8):
        generate(seed, "test").image.save(folder / f"{seed}.png")
    (folder.parent / "prompts.txt").write_text("What number is written?\nHow many objects are there?\n")
    return folder


@pytest.fixture(scope="module")
def journal(folder: Path) -> Path:
    return folder.parent / "results.jsonl"


@pytest.fixture(scope="module")
def found(engine: Engine, folder: Path, journal: Path) -> Recommendation:
    """The recommendation of three candidates that can run and one that cannot, on 16 questions."""
    data = DataSet.read(folder, folder.parent / "prompts.txt")
    (found,) = recommend(engine, data, read_prunings(CANDIDATES, "0.111"), SHORT, journal)
    return found


def test_the_worst_half_of_a_round_is_dropped_and_the_others_are_asked_on(
    engine: Engine, folder: Path, journal: Path, found: Recommendation
) -> None:
    """Compare with a plain comparison of the same candidates on all questions."""
    by_name = {one.name: one for one in found.candidates}
    assert sorted(one.questions for one in found.candidates) == [0, 8, 16, 16]
    (dropped,) = (one for one in found.candidates if one.dropped)
    assert (dropped.questions, dropped.verdict) == (8, "dropped after 8")

    data = DataSet.read(folder, folder.parent / "prompts.txt")
    result = compare_folder(engine, data, read_prunings(CANDIDATES, "0.111"), SHORT, journal)
    order = [(path.name, prompt) for path in data.pictures for prompt in data.prompts]
    random.Random(0).shuffle(order)
    losses: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for line in journal.read_text().splitlines()[1:]:
        record = json.loads(line)
        if record["fidelity"] is not None:
            losses[record["name"]][record["picture"], record["prompt"]] = record["fidelity"]["loss_increase"]
    first_round = {
        name: statistics.fmean(losses[name][pair] for pair in order[:8]) for name in losses if name in by_name
    }
    assert max(first_round, key=lambda name: first_round[name]) == dropped.name
    assert dropped.loss_increase == pytest.approx(first_round[dropped.name])
    for summary in result.summaries:
        name = f"{summary.pruning.label} {summary.pruning.budget_text}"
        if name in by_name and by_name[name].questions == 16:
            assert summary.loss_increase is not None
            assert by_name[name].loss_increase == pytest.approx(summary.loss_increase.value)
            assert by_name[name].first_token == summary.first_token


def test_the_fastest_of_those_that_noise_cannot_tell_apart_is_recommended(found: Recommendation) -> None:
    last = [one for one in found.candidates if one.questions == 16]
    alike = [one for one in last if one.behind is None or not one.behind.differs_from(0.0)]
    best = min(alike, key=lambda one: one.first_token or 0.0)
    assert found.candidates[0] == best
    assert best.verdict == "take it"
    assert best.name == f"{found.pruning.method} 0.111"
    assert found.sentence.startswith(f"Take {best.name}: of 3 candidates, it ")
    for one in last:
        if one != best:
            assert one.verdict == ("same within noise" if one in alike else "worse")
            assert (one.name in found.sentence) == (one in alike)
    assert [one.verdict for one in found.candidates].count("cannot run") == 1
    failed = found.candidates[-1]
    assert failed.name == "fastv 0.111"
    assert "cannot be met" in str(failed.error)
    assert "[1] keep=0.111 cannot be met" in str(found.table())


def test_equal_candidates_are_the_same_within_noise(engine: Engine, folder: Path) -> None:
    """Encoding equal pictures once changes no answer: the faster run is taken, and the other one named."""
    data = DataSet.read(folder, None, "What number is written?")
    (found,) = recommend(engine, data, read_prunings("trim, trim:dedup=exact", "0.5"), SHORT, seed=3)
    first, second = found.candidates
    assert (first.verdict, second.verdict) == ("take it", "same within noise")
    assert first.loss_increase == second.loss_increase
    assert first.first_token is not None
    assert second.first_token is not None
    assert first.first_token <= second.first_token
    assert second.name in found.sentence
    assert "the same within noise, on 8 questions" in found.sentence


def test_the_command_continues_its_file_and_writes_a_pruning_for_other_commands(
    tops: Tops, folder: Path, journal: Path, found: Recommendation, tmp_path: Path
) -> None:
    model = ("--model", "mini", "--device", "cpu", "--max-tokens", 3)
    asked = ("--prompts", folder.parent / "prompts.txt", "--methods", CANDIDATES, "--keep", 0.111)
    before = journal.read_text()
    command = ("compare", folder, "--recommend", *asked, *model, "-o", journal)
    result = tops(*command)
    assert result.code == 0, result.err
    assert found.sentence in result.out
    written = json.loads(tops(*command, "--json").out)
    assert [Candidate(**one) for one in written[0]["candidates"]] == found.candidates
    assert journal.read_text() == before, "all answers were in the file"

    pruning = tmp_path / "pruning.json"
    pruning.write_text(json.dumps(written[0]["pruning"]))
    answer = tops("ask", folder / "0.png", "What?", *model, "--pruning", pruning, "--json")
    assert json.loads(answer.out)["pruning"]["method"] == found.pruning.method


def test_what_cannot_be_recommended_is_refused(tops: Tops, engine: Engine, folder: Path, tmp_path: Path) -> None:
    data = DataSet.read(folder, None, "What?")
    with pytest.raises(InvalidInput, match=r"nothing to choose from at 0\.2;"):
        recommend(engine, data, [Pruning(keep=0.2), Pruning(keep=0.5), Pruning(method="random", keep=0.5)], SHORT)
    with pytest.raises(BudgetError, match=r"No candidate is left: keep=0\.1 cannot be met"):
        recommend(engine, data, read_prunings("fastv,dart", "0.1"), SHORT)
    few = DataSet(folder, data.pictures[:7], data.prompts)
    with pytest.raises(InvalidInput, match="needs 8 different pictures that can be read, and there are 7"):
        recommend(engine, few, read_prunings("trim,random", "0.1"), SHORT)
    for arguments, reason in (
        ((folder / "0.png", "What?", "--recommend"), "--recommend is for a folder"),
        ((folder, "What?", "--json"), "--json is for --recommend"),
        ((folder, "What?", "--recommend", "--against", "tops"), "--recommend compares every method"),
    ):
        result = tops("compare", *arguments, "--model", "mini")
        assert result.code != 0
        assert reason in result.err
