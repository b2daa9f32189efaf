"""Test the settings of pruning and the recipes that are kept of them, on the embedded model."""

import json

import pytest
from tops_workflow.host import Interrupted
from torch import Tensor

import nodes
from nodes.models import TopsModel
from tests.nodes.conftest import QUESTION, RecordingHost, ask, node
from tops_engine.errors import TopsError
from tops_engine.settings import Pruning


def test_pruning_widgets_become_settings() -> None:
    settings = node("TOPSPruning").settings
    defaults = {"schedule": "", "alpha": 0.5, "lambda": 0.5, "raters": "dynamic", "positions": "default"}
    assert settings(method="tops", keep=0.222, **defaults)[0] == Pruning()
    assert settings(method="tops", keep=64.0, **defaults | {"lambda": 2.0})[0] == Pruning(keep=64, lambda_=2.0)
    seeded = settings(method="random", keep=1, options="selection_seed=7", **defaults)[0]
    assert seeded.resolved() == Pruning(method="random", keep=1.0, selection_seed=7).resolved()
    composed = settings(method="divprune", keep=0.5, options="layer=3\nmerge=true", then="fastv", **defaults)[0]
    assert composed.resolved() == Pruning(method="divprune+fastv", keep=0.5, layer=3, merge=True).resolved()
    cascade = settings(method="tops", keep=0.111, cascade="0.333+1.0", confident=0.8, **defaults)[0]
    assert cascade == Pruning(keep=(0.111, 0.333, 1.0), confident=0.8)
    limited = settings(method="tops", keep=0.222, options="flops=0.3", **defaults)[0]
    assert limited.resolved() == Pruning(flops=0.3).resolved()
    validate = nodes.NODE_CLASS_MAPPINGS["TOPSPruning"].VALIDATE_INPUTS
    assert validate("tops", 0.5) is True
    assert "have to rise" in str(validate("tops", 0.5, cascade="0.1"))
    assert "give several" in str(validate("tops", 0.5, confident=0.9))
    assert "keep and flops both set the budget" in str(validate("tops", 0.5, "flops=0.3"))
    assert validate("divprune", 0.5, "", "fastv") is True
    assert "does not prune before the language model" in str(validate("dart", 0.5, "", "fastv"))
    for keep, options in ((1.5, ""), (0.5, "gamma=1"), (0.5, "nonsense"), (0.5, "recipe=/etc/passwd"), (0.0, "")):
        assert isinstance(validate("tops", keep, options), str)


def test_a_recipe_is_saved_and_loaded_and_stays_in_its_folders(watching: RecordingHost) -> None:
    recipe = node("TOPSRecipe").recipe
    given = Pruning(keep=64, raters="last")
    saved = recipe("mine", given)["result"]
    assert (watching.folders.output / "tops_recipes" / "mine.json").is_file()
    loaded = recipe("mine")["result"]
    assert saved[0] == loaded[0] == given
    assert json.loads(loaded[1])["raters"] == "last"
    (watching.folders.input / "broken.json").write_text("{")
    (watching.folders.input / "list.json").write_text("[]")
    (watching.folders.input / "reads.json").write_text('{"method": "fitprune", "recipe": "/etc/passwd"}')
    (watching.folders.input / "latin.json").write_bytes(b"\xe9")
    for name in ("broken", "list", "reads", "latin", "missing", "../mine", "C:mine", "", "x" * 300, "a\0b", "\ud800"):
        with pytest.raises(TopsError):
            recipe(name)
    with pytest.raises(TopsError):
        recipe("x" * 300, given)


def test_a_model_is_calibrated_once_and_the_recipe_reused(
    model: TopsModel, photo: Tensor, watching: RecordingHost
) -> None:
    done = node("TOPSCalibrate").calibrate([model], [photo], [QUESTION], [0.5], ["fitted"])["result"]
    assert done[0].method == "fitprune"
    assert "50 %" in done[1]
    assert watching.steps[-1][0] <= watching.steps[-1][1]
    loaded = node("TOPSRecipe").recipe("fitted")["result"][0]
    assert loaded.resolved() == done[0].resolved()
    usage = ask(model, image=photo, pruning=loaded)["result"][3].answers[0].usage
    assert usage.kept_fraction == pytest.approx(0.5, abs=0.02)
    watching.stop_after = len(watching.steps) + 2
    with pytest.raises(Interrupted):
        node("TOPSCalibrate").calibrate([model], [photo], [QUESTION], [0.5], ["fitted"])
    assert isinstance(nodes.NODE_CLASS_MAPPINGS["TOPSCalibrate"].VALIDATE_INPUTS("../x"), str)
