"""Test settings: what is allowed, what is refused with which message, and the round trip through JSON."""

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tops_engine.budget import Stage
from tops_engine.errors import BudgetError, InvalidInput
from tops_engine.methods import METHODS
from tops_engine.settings import DEFAULT_MODEL, Generation, ModelSpec, Pruning, Settings, pruning_fields


def refusal(kind: type[Settings], **options: Any) -> str:
    """Return the one sentence with which options are refused."""
    with pytest.raises(InvalidInput) as error:
        kind(**options)
    message = str(error.value)
    assert re.fullmatch(r"[^\n]+[^.\n]\.", message)
    assert "pydantic" not in message
    assert "Value error" not in message
    return message


def test_long_values_are_cut_and_many_faults_counted() -> None:
    assert refusal(Pruning, method="x" * 5000).startswith("There is no method 'xxx")
    assert len(refusal(Pruning, method="x" * 5000)) < 300
    message = refusal(Generation, max_tokens="x" * 5000, temperature=[0] * 5000, top_p="y" * 5000, top_k={"a": 1})
    assert message.startswith("max_tokens='xxx")
    assert message.endswith("; and 3 more.")
    assert len(message) < 300
    assert len(refusal(Generation, **{"z" * 5000: 1})) < 300


@pytest.mark.parametrize("keep", [0, 1.5, -3, "abc", "", math.nan, math.inf, "nan", True, None, [0.3], 0.0, -0.1, 2.5])
def test_a_keep_that_is_neither_fraction_nor_count_is_refused_with_what_is_allowed(keep: Any) -> None:
    assert refusal(Pruning, keep=keep) == (
        f"keep={keep!r} is not allowed: give a fraction above 0 and up to 1.0, or a whole number of tokens from 2."
    )


@pytest.mark.parametrize("keep", [1, "1"])
def test_a_keep_of_one_is_refused_as_ambiguous(keep: Any) -> None:
    assert "write 1.0 for all" in refusal(Pruning, keep=keep)


@given(st.floats(0, 1, exclude_min=True) | st.integers(2))
def test_every_other_fraction_and_count_is_taken_as_it_is_and_from_its_text(keep: float | int) -> None:
    for given_keep in (keep, str(keep)):
        taken = Pruning(keep=given_keep).keep
        assert taken == keep
        assert type(taken) is type(keep)


def test_an_unknown_method_is_refused_with_the_nearest_of_the_known_ones() -> None:
    for wrong, right in (("divprun", "divprune"), ("top", "tops"), ("vision_zip", "visionzip"), ("fastV", "fastv")):
        message = refusal(Pruning, method=wrong)
        assert message.startswith(f"There is no method {wrong!r}; choose one of {right}, ")
        assert f"({len(METHODS)} in all)" in message


def test_an_option_the_method_lacks_is_refused_with_the_ones_it_has() -> None:
    assert refusal(Pruning, method="random", alpha=0.3) == (
        "There is no option 'alpha'. Method 'random' has these options: selection_seed."
    )


@pytest.mark.parametrize(("kind", "name"), [(Pruning, "alhpa"), (Generation, "max_token"), (ModelSpec, "devise")])
def test_an_unknown_option_is_refused_by_name(kind: type[Settings], name: str) -> None:
    assert f"There is no option '{name}'" in refusal(kind, **{name: 1})


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": -0.1},
        {"alpha": math.nan},
        {"alpha": 11},
        {"lambda": "much"},
        {"lambda_": -1},
        {"criteria": []},
        {"criteria": "beauty"},
        {"raters": "first"},
        {"normalization": "max"},
        {"method": "random", "selection_seed": -1},
        {"positions": "shuffled"},
    ],
)
def test_a_method_option_out_of_bounds_is_refused_by_name(options: dict[str, Any]) -> None:
    name = list(options)[-1].removesuffix("_")
    assert re.match(rf"{name}(\.0)?=.+ is not allowed", refusal(Pruning, **options))


def test_criteria_are_a_list_a_set_or_text() -> None:
    for criteria in (["coverage", "relevance"], {"coverage", "relevance"}, "relevance, coverage"):
        assert sorted(Pruning(criteria=criteria).resolved()["criteria"]) == ["coverage", "relevance"]


@pytest.mark.parametrize("schedule", ["0:256,12:64", " 0:256, 12:64", [[0, 256], [12, 64]], ((0, 256), (12, 64))])
def test_a_schedule_is_pairs_or_their_text(schedule: Any) -> None:
    pruning = Pruning(schedule=schedule)

    assert pruning.schedule == (Stage(0, 256), Stage(12, 64))
    assert pruning.stages(576, 32) == (Stage(0, 256), Stage(12, 64))


def test_a_schedule_gives_an_image_no_more_tokens_than_it_has() -> None:
    assert Pruning(schedule="0:256,12:64").stages(100, 32) == (Stage(0, 100), Stage(12, 64))


@pytest.mark.parametrize(
    "schedule",
    ["0:64,12:256", "12:64,0:32", "0:64,0:32", "0:0", "0:64,12", "0:many", "0:1:2", "-1:5", [], [[0]], [[0, 2.5]], 7],
)
def test_an_unsound_schedule_is_refused_with_what_one_is(schedule: Any) -> None:
    assert refusal(Pruning, schedule=schedule) == (
        "a schedule is (layer, tokens) pairs: ascending layers, at least one token, never more than before."
    )


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    assert "llava-1.5-7b/64" in refusal(Pruning, schedule="llava-1.5-7b/65")


def test_keep_and_schedule_together_are_refused() -> None:
    assert refusal(Pruning, keep=0.3, schedule="0:64") == "keep and schedule both set the budget; give one of them."


@pytest.mark.parametrize("schedule", ["0:64,8:32", "llava-1.5-7b/64"])
def test_a_schedule_beyond_the_models_last_layer_is_a_budget_error(schedule: str) -> None:
    with pytest.raises(BudgetError, match=r"prunes at layer \d+; the model has 8 layers\."):
        Pruning(schedule=schedule).stages(576, 8)


def test_a_preset_brings_its_stages_and_weights() -> None:
    pruning = Pruning(schedule="llava-1.5-13b/64")

    assert pruning.stages(576, 40) == (Stage(0, 128), Stage(15, 64), Stage(30, 16))
    assert (pruning.resolved()["alpha"], pruning.resolved()["lambda"]) == (0.5, 0.4)


@pytest.mark.parametrize("name", ["lambda", "lambda_"])
def test_weights_given_beside_a_preset_win(name: str) -> None:
    options: dict[str, Any] = {"schedule": "llava-1.5-13b/64", "alpha": 0.1, name: 0.9}
    resolved = Pruning(**options).resolved()

    assert (resolved["alpha"], resolved["lambda"]) == (0.1, 0.9)


def test_a_schedule_of_a_method_that_has_no_weights() -> None:
    assert Pruning(method="random", schedule="0:128").stages(576, 32) == (Stage(0, 128),)


@pytest.mark.parametrize(
    ("method", "schedule", "where"),
    [("random", "llava-1.5-7b/64", "at layer 12"), ("none", "0:64", "before the language model")],
)
def test_a_schedule_that_prunes_where_the_method_does_not_is_refused(method: str, schedule: str, where: str) -> None:
    with pytest.raises(InvalidInput, match=f"prunes {where}, where method '{method}' does not choose tokens"):
        Pruning(method=method, schedule=schedule)


def test_keep_is_spent_the_way_the_method_plans() -> None:
    assert Pruning(method="none", keep=0.1).stages(576, 32) == (Stage(0, 576),)
    assert Pruning(method="random", keep=0.25).stages(576, 32) == (Stage(0, 144),)
    assert Pruning(keep=128).stages(576, 32) == (Stage(0, 256), Stage(12, 64), Stage(24, 32))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keep": 1.0},
        {"keep": 64},
        {"keep": "0.25"},
        {"schedule": "llava-next-7b/320"},
        {"schedule": "0:256,12:64"},
        {"schedule": [(3, 7)], "positions": "original"},
        {"alpha": 0.25, "lambda_": 0.75},
        {"criteria": {"relevance", "diversity"}, "raters": "last"},
        {"criteria": "relevance,diversity", "normalization": "minmax"},
        {"method": "random", "selection_seed": 3},
        {"method": "none"},
    ],
)
def test_pruning_survives_json(options: dict[str, Any]) -> None:
    pruning = Pruning(**options)
    back = Pruning(**json.loads(pruning.model_dump_json()))

    assert back == pruning
    assert type(back.keep) is type(pruning.keep)
    assert back.resolved() == pruning.resolved()


def test_generation_and_model_spec_survive_json() -> None:
    generation = Generation(stop=["a", "b"], temperature=0.5, seed=2**63 - 1)
    assert Generation(**json.loads(generation.model_dump_json())) == generation
    spec = ModelSpec(model="here", device="cuda:1", quantization="4bit")
    assert ModelSpec(**json.loads(spec.model_dump_json())) == spec


def test_resolved_pruning_is_complete_and_plain() -> None:
    for method in METHODS:
        resolved = Pruning(method=method).resolved()
        assert set(resolved) == {
            name for name, (_, having) in pruning_fields().items() if not having or method in having
        }
        assert json.loads(json.dumps(resolved)) == resolved
        assert resolved["positions"] in ("contiguous", "original")


def test_settings_are_frozen() -> None:
    for settings, name in ((Pruning(alpha=0.3), "keep"), (Pruning(alpha=0.3), "alpha"), (Generation(), "seed")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(settings, name, 3)


def test_equal_specs_are_one_key() -> None:
    engines = {ModelSpec(model="a", device="cpu"): 1}

    assert engines[ModelSpec(device="cpu", model="a")] == 1
    assert ModelSpec(model="a", device="auto") not in engines


def test_the_environment_names_the_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPS_MODEL", "mini")
    assert ModelSpec().model == "mini"
    assert ModelSpec(model="other").model == "other"
    monkeypatch.setenv("TOPS_MODEL", "")
    assert ModelSpec().model == DEFAULT_MODEL
    monkeypatch.delenv("TOPS_MODEL")
    assert ModelSpec().model == DEFAULT_MODEL


@pytest.mark.parametrize(
    "options",
    [
        {"model": ""},
        {"device": "gpu"},
        {"device": "cuda:x"},
        {"device": "cpu\n"},
        {"dtype": "int8"},
        {"attention": "x"},
    ],
)
def test_a_spec_out_of_bounds_is_refused(options: dict[str, Any]) -> None:
    (name,) = options
    assert refusal(ModelSpec, **options).startswith(f"{name}=")


def test_seeds_are_those_of_comfyui_and_minus_one_is_a_new_one() -> None:
    assert Generation(seed=2**64 - 1).seed == 2**64 - 1
    assert Generation(seed=-1).seed is None


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"max_tokens": "many"},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"top_k": -1},
        {"repetition_penalty": 0},
        {"repetition_penalty": math.nan},
        {"seed": -2},
        {"seed": 2**64},
    ],
)
def test_generation_out_of_bounds_is_refused(options: dict[str, Any]) -> None:
    (name,) = options
    assert refusal(Generation, **options).startswith(f"{name}=")


def test_the_edges_of_the_bounds_are_allowed() -> None:
    generation = Generation(max_tokens=1, temperature=0, top_p=1, top_k=0, seed=0)
    assert (generation.max_tokens, generation.temperature, generation.top_p) == (1, 0.0, 1.0)


def test_several_faults_are_named_together() -> None:
    message = refusal(Generation, max_tokens=0, top_p=2)
    assert "max_tokens=0" in message
    assert "top_p=2" in message


@pytest.mark.parametrize("stop", ["", ["END", ""]])
def test_an_empty_stop_text_is_refused(stop: Any) -> None:
    assert "would end every answer at once" in refusal(Generation, stop=stop)


def test_one_stop_text_is_one_text_not_its_letters() -> None:
    assert Generation(stop="END").stop == ("END",)


@pytest.mark.parametrize(
    "pruning",
    [
        Pruning(keep=0.3),
        Pruning(keep=8, method="random", selection_seed=3),
        Pruning(keep=0.3, raters="last", lambda_=2.0),
        Pruning(keep=0.3, criteria=["relevance", "coverage"]),
    ],
)
def test_a_label_names_a_pruning_whole(pruning: Pruning) -> None:
    assert Pruning.from_label(pruning.label, pruning.keep).method_instance == pruning.method_instance


def test_labels_read_like_this() -> None:
    assert Pruning(keep=0.3, positions="contiguous").label == "tops"  # its own default
    assert Pruning(criteria="relevance,diversity", normalization="minmax").label == (
        "tops:criteria=diversity+relevance:normalization=minmax"
    )
    with pytest.raises(InvalidInput, match="is not a method with options"):
        Pruning.from_label("tops:fast", 0.3)
