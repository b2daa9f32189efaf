"""Test `tops tune`: it finds the smallest budget that agrees, without assuming that more tokens agree more."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Picture, Tops
from tops_engine.comparison.cascade_thresholds import Attempt, smallest_threshold
from tops_engine.comparison.tune import tune
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, InvalidInput
from tops_engine.evaluation.data_set import DataSet
from tops_engine.evaluation.intervals import wilson
from tops_engine.settings import Generation, Pruning

SHORT = Generation(max_tokens=2)
BUDGETS = [0.1, 0.25, 0.5, 0.75]
METHODS = ["random", "divprune"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, picture: Picture) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(5):
        picture(56, 56, number).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def agreements(llava_engine: Engine, folder: Path) -> dict[tuple[str, float], float]:
    """Return the share of each method's and budget's answers that equal the unpruned model's, asked one by one."""
    pictures = sorted(folder.iterdir())

    def texts(pruning: Pruning) -> list[str]:
        return [llava_engine.chat([user_message("What?", path)], pruning, SHORT).text for path in pictures]

    expected = texts(Pruning(keep=1.0))
    shares = {}
    for keep in BUDGETS:
        for method in METHODS:
            same = [a == b for a, b in zip(texts(Pruning(method=method, keep=keep)), expected, strict=True)]
            shares[method, keep] = sum(same) / len(same)
    return shares


@pytest.mark.parametrize("agree", [0.2, 0.4, 0.6, 0.8, 1.0])
def test_the_first_budget_at_which_a_method_agrees_is_found(
    llava_engine: Engine, folder: Path, agreements: dict[tuple[str, float], float], agree: float
) -> None:
    data = DataSet.read(folder, None, "What?")
    reaching = [keep for keep in BUDGETS if max(agreements[method, keep] for method in METHODS) >= agree - 1e-9]
    if not reaching:
        with pytest.raises(BudgetError, match="No method reaches an agreement"):
            tune(llava_engine, data, METHODS, agree, SHORT, BUDGETS)
        return
    found = tune(llava_engine, data, METHODS, agree, SHORT, reversed_budgets())
    keep = found.best.pruning.budget
    assert keep == reaching[0]
    best = max(agreements[method, keep] for method in METHODS)
    assert agreements[found.best.pruning.method, keep] == best == found.best.agreed / found.best.asked
    for trial in found.trials[1:]:
        assert trial.passed == (agreements[trial.pruning.method, float(trial.pruning.budget)] >= agree - 1e-9)
    low, high = wilson(found.best.agreed / found.best.asked, found.best.asked)
    assert f"{found.best.agreed} of 5 answers ({100 * best:.1f} %; 95 % interval {100 * low:.1f} to" in found.sentence()
    assert f"{100 * high:.1f} %" in found.sentence()


def reversed_budgets() -> list[float]:
    """Return the budgets in reverse order; any order is allowed."""
    return BUDGETS[::-1]


def test_a_trial_ends_once_it_cannot_reach_the_rate(llava_engine: Engine, folder: Path) -> None:
    data = DataSet.read(folder, None, "What?")
    found = tune(llava_engine, data, ["random", "divprune"], 1.0, SHORT, [0.1, 1.0])
    assert found.best.pruning.keep == 1.0
    for trial in found.trials[1:3]:
        assert trial.asked - trial.agreed == 1
        assert not trial.passed


def test_what_cannot_be_tuned_is_refused(llava_engine: Engine, folder: Path) -> None:
    data = DataSet.read(folder, None, "What?")
    with pytest.raises(InvalidInput, match=r"agree=1.5 is not allowed"):
        tune(llava_engine, data, ["tops"], 1.5, SHORT)
    with pytest.raises(InvalidInput, match="temperature 0, or give a seed"):
        tune(llava_engine, data, ["tops"], 0.9, Generation(temperature=1.0))
    with pytest.raises(BudgetError, match=r"No method could run: keep=0\.1 cannot be met"):
        tune(llava_engine, data, ["fastv"], 0.9, SHORT, [0.1])


def test_the_pruning_it_writes_is_used_by_the_other_commands(
    tops: Tops, llava_folder: Path, folder: Path, tmp_path: Path
) -> None:
    written = tmp_path / "pruning.json"
    model = ("--model", llava_folder, "--device", "cpu", "--max-tokens", 2)
    methods = ("--methods", "tops:alpha=0.25,fastv", "--keep", "0.05, 1.0", "--agree", 0.9)
    result = tops("tune", folder, "What?", *model, *methods, "-o", written)
    assert result.code == 0, result.err
    assert "agrees with the unpruned model on 5 of 5 answers (100.0 %; 95 % interval 56.6 to 100.0 %)" in result.out
    assert "fastv could not run at every budget: keep=0.05 " in result.out
    found = Pruning.model_validate_json(written.read_text())
    assert found.keep == 1.0

    photo = folder / "0.png"
    asked = json.loads(tops("ask", photo, "What?", *model, "--pruning", written, "--json").out)
    assert (asked["pruning"]["keep"], asked["pruning"]["method"]) == (1.0, found.method)
    changed = json.loads(tops("ask", photo, "What?", *model, "--pruning", written, "--keep", 8, "--json").out)
    assert changed["pruning"]["keep"] == 8
    compared = tops("compare", photo, "What?", *model, "--pruning", written, "--repeats", 1)
    assert f"{found.label} 1.0" in compared.out


def test_without_a_file_the_pruning_is_printed(tops: Tops, llava_folder: Path, folder: Path) -> None:
    model = ("--model", llava_folder, "--device", "cpu", "--max-tokens", 1)
    result = tops("tune", folder, "What?", *model, "--keep", "1.0")
    assert Pruning.model_validate_json(result.out[result.out.index("{") :]) == Pruning(keep=1.0)


@pytest.mark.parametrize("agree", [0.4, 1.0])
def test_the_smallest_threshold_of_a_cascade_that_agrees_is_found(
    llava_engine: Engine, folder: Path, agree: float
) -> None:
    data = DataSet.read(folder, None, "What?")
    best = tune(llava_engine, data, ["tops"], agree, SHORT, ["0.1+1.0"]).best
    assert best.passed
    assert best.pruning.keep == (0.1, 1.0)
    assert best.pruning.confident is not None
    assert best.agreed >= agree * best.asked

    def share(threshold: float) -> float:
        pruning = Pruning(keep=(0.1, 1.0), confident=threshold)
        questions = [[user_message("What?", path)] for path in sorted(folder.iterdir())]
        pairs = [[llava_engine.chat(one, by, SHORT).text for by in (pruning, Pruning(keep=1.0))] for one in questions]
        return sum(text == expected for text, expected in pairs) / len(pairs)

    assert share(best.pruning.confident) == best.agreed / best.asked
    if best.pruning.confident > 0.001:
        assert share(best.pruning.confident - 0.001) < agree
    # A threshold that is given is not searched.
    given = tune(llava_engine, data, ["tops:confident=1.0"], agree, SHORT, ["0.1+1.0"]).best
    assert (given.pruning.confident, given.agreed) == (1.0, 5)
    assert given.kept > 1


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=30),
    st.floats(0.05, 1.0),
)
def test_no_smaller_threshold_agrees_often_enough(found: list[tuple[float, bool, bool]], agree: float) -> None:
    attempts = [[Attempt(sure, first), Attempt(1.0, last)] for sure, first, last in found]

    def reaches(threshold: float) -> bool:
        right = [first if sure >= threshold else last for sure, first, last in found]
        return sum(right) >= agree * len(right) - 1e-9

    reaching = [part / 1000 for part in range(1, 1001) if reaches(part / 1000)]
    assert smallest_threshold(attempts, agree) == (reaching[0] if reaching else None)
