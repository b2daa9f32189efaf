"""Test `tops calibrate`: what it writes and what it refuses."""

import json
from pathlib import Path

import pytest

from tests.conftest import Picture, Tops
from tops_engine.methods.recipe import Recipe


@pytest.fixture
def folder(tmp_path: Path, picture: Picture) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(4):
        picture(60 + seed, 60, seed).save(folder / f"{seed}.png")
    return folder


def test_a_recipe_is_fitted_written_and_used(tops: Tops, llava_folder: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"no picture")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What?\nWhere is it?\n")
    path, model = tmp_path / "recipe.json", ("--model", llava_folder, "--device", "cpu")
    result = tops("calibrate", folder, "--method", "fitprune", "--keep", 0.45, "--prompts", prompts, "-o", path, *model)

    assert result.code == 0
    assert "45 % of the visual tokens on average, layer by layer 1.00 " in result.out
    assert "on 4 questions" in result.out
    assert "Skipped broken.jpg" in result.err
    recipe = Recipe.read(path)
    assert (recipe.model, recipe.num_layers, recipe.keep, recipe.num_questions) == (str(llava_folder), 8, 0.45, 4)

    asked = tops("ask", folder / "0.png", "What?", "--recipe", path, "--json", "--max-tokens", 1, *model)
    answer = json.loads(asked.out)
    assert answer["usage"]["layer_average"] == pytest.approx(0.45 * 16, abs=0.5)
    assert answer["pruning"]["method"] == "fitprune"
    assert answer["pruning"]["recipe"] == json.loads(path.read_text())


def test_samples_are_spread_over_the_folder(tops: Tops, llava_folder: Path, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    options = ("--samples", 2, "--keep", 0.5, "-o", path, "--model", llava_folder, "--device", "cpu")
    assert tops("calibrate", folder, *options).code == 0
    assert Recipe.read(path).num_questions == 2


def test_scenes_need_no_pictures(tops: Tops, llava_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    path = tmp_path / "recipe.json"
    options = ("--keep", "0.5", "-o", path, "--model", llava_folder, "--device", "cpu")
    assert tops("calibrate", "--scenes", 2, *options).code == 0
    assert Recipe.read(path).num_questions == 2


def test_a_recipe_for_a_deeper_model_is_refused(tops: Tops, llava_folder: Path, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    Recipe(
        model="deep",
        num_layers=32,
        keep=0.5,
        remaining=(1.0, *[0.5] * 31),
        divergence=0,
        tolerance=0,
        num_questions=1,
    ).save(path)
    result = tops("ask", folder / "0.png", "What?", "--recipe", path, "--model", llava_folder, "--device", "cpu")
    assert result.code == 1
    assert result.err == (
        "Error: The recipe was fitted to deep, which has 32 layers, and this model has 8; "
        "fit one to it with `tops calibrate`.\n"
    )


def test_a_recipe_for_another_model_is_a_warning(tops: Tops, llava_folder: Path, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    half = (1.0, *[0.5] * 7)
    Recipe(model="other", num_layers=8, keep=0.5, remaining=half, divergence=0, tolerance=0, num_questions=1).save(path)
    options = ("--recipe", path, "--model", llava_folder, "--device", "cpu", "--max-tokens", 1)
    result = tops("ask", folder / "0.png", "What?", *options)
    assert result.code == 0
    assert f"Warning: The recipe was fitted to other; for {llava_folder} it may not be the best one.\n" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "0.5"], "Give a folder of pictures, or --scenes NUMBER."),
        (["{folder}", "--scenes", "2", "--keep", "0.5"], "Give a folder of pictures, or --scenes NUMBER."),
        (["--scenes", "2", "--question", "What?", "--keep", "0.5"], "scenes have their own questions"),
        (["{folder}", "--keep", "64"], "keep=64.0 is not allowed: a recipe needs a fraction"),
        (["{empty}", "--keep", "0.5"], "There are no pictures in"),
        (["{folder}/none", "--keep", "0.5"], "There is no folder"),
        (["{broken}", "--keep", "0.5"], "None of the pictures in"),
        (["{folder}", "--keep", "0.1"], "use at least 0.1797"),
        (["{folder}", "--keep", "0.5", "-o", "{folder}/none/recipe.json"], "There is no folder to write"),
        (["{folder}", "--keep", "0.5", "--prompts", "{folder}/none.txt"], "cannot be read"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    tops: Tops, llava_folder: Path, folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    places = {"folder": folder, "empty": tmp_path / "empty", "broken": tmp_path / "broken"}
    path = tmp_path / "recipe.json"
    given = [argument.format(**places) for argument in arguments]
    result = tops("calibrate", "-o", path, *given, "--model", llava_folder, "--device", "cpu")

    assert result.code == 1
    assert message in result.err
    assert not path.exists()
