"""Damaged recipes, files of pruning settings, lists of questions, and calibration on what they ask for."""

import json
from pathlib import Path
from typing import Any

import pytest

from nodes.pruning import read_pruning_file
from tests.fuzz.conversations import SAMPLE
from tests.fuzz.mutations import HOSTILE, Mutator, as_json
from tests.fuzz.rules import level_memory, seeds, survives
from tops_engine.calibration import fit_recipe
from tops_engine.cli.options import read_options
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine, shared_engine
from tops_engine.evaluation.data_set import read_prompts
from tops_engine.journal import Journal
from tops_engine.methods.recipe import Recipe
from tops_engine.settings import Generation, ModelSpec, Pruning

QUESTION = [user_message("What number is written?", SAMPLE)]
RECIPE: dict[str, Any] = {
    "version": 1,
    "method": "fitprune",
    "model": "mini",
    "num_layers": 8,
    "keep": 0.4,
    "remaining": [1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.1, 0.1],
    "divergence": 0.1,
    "tolerance": 0.2,
    "num_questions": 3,
}
FILES: list[dict[str, Any]] = [
    RECIPE,
    {"method": "fitprune", "recipe": RECIPE, "keep": 0.3},
    {"method": "tops", "schedule": [[0, 64], [2, 16]], "lambda": 2.0, "raters": "last"},
    {"method": "divprune", "keep": 20, "positions": "original"},
]
HEADER = {"format": "tops-fuzz-1", "model": "mini"}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return shared_engine(ModelSpec(model="mini", device="cpu"))


def test_damaged_recipes_run_or_are_refused(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    with level_memory("recipes"):
        for seed in seeds("recipes"):
            mutator, case = Mutator(seed), f"recipe {seed}"
            options = mutator.value(FILES[seed % len(FILES)])
            text = as_json(options).encode()
            path.write_bytes(mutator.content(text) if seed % 3 == 0 else text)
            survives(case, Recipe.read, path)
            survives(case, Recipe.read, options)
            survives(case, read_pruning_file, text.decode())
            survives(case, read_prompts, path)
            pruning = survives(case, lambda: Pruning(**read_options(path)))
            if pruning is not None:
                survives(case, engine.chat, QUESTION, pruning, Generation(max_tokens=1))


def test_damaged_results_files_are_continued_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    records = [{"picture": f"{number}.jpg", "answer": "x"} for number in range(5)]
    sound = "".join(json.dumps(record) + "\n" for record in [HEADER, *records]).encode()
    for seed in seeds("results files"):
        mutator = Mutator(seed)
        path.write_bytes(mutator.content(sound))
        survives(f"results file {seed}", continue_results, path)


def continue_results(path: Path) -> None:
    journal = Journal(path, HEADER)
    found = list(journal.records())
    journal.append([{"picture": "new.jpg"}])
    journal.sort(lambda record: str(record.get("picture")))
    assert len(list(journal.records())) <= len(found) + 1


def test_calibration_fits_or_refuses(engine: Engine) -> None:
    budgets = [value for value in HOSTILE if not isinstance(value, str)] + [1e-9, 0.3, 1.0, 0.9999]
    questions = [[user_message("What?", SAMPLE)], [user_message("Who?", SAMPLE)], [user_message("No picture")]]
    for seed in seeds("calibration"):
        mutator, case = Mutator(seed), f"calibration {seed}"
        asked = [question for question in questions if mutator.random.random() < 0.5]
        survives(case, fit_recipe, engine, asked, mutator.random.choice(budgets))
