"""Test the plugin's variables and which values are refused; vLLM itself is not needed."""

import subprocess
import sys

import pytest
import vllm_tops
from vllm_tops.models import PRUNED, unsupported
from vllm_tops.settings import (
    environment_of,
    for_vllm,
    kept_tokens,
    ray_environment,
    read_pruning,
    served_methods,
)

from tests.conftest import Tops
from tops_engine.errors import BudgetError, InvalidInput
from tops_engine.settings import Pruning


def test_nothing_happens_without_a_budget() -> None:
    code = "import sys, vllm_tops; vllm_tops.register(); sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_tops_prunes_by_its_first_stage_alone() -> None:
    pruning = read_pruning({"TOPS_KEEP": "0.222"})
    assert pruning == Pruning(keep=0.222, stages="first")
    assert [kept_tokens(pruning, count) for count in (144, 576, 2880)] == [32, 128, 639]
    assert pruning.method_instance.plan(576, 32, 0.222) == ((0, 128),)


def test_a_method_comes_with_its_options() -> None:
    pruning = read_pruning({"TOPS_KEEP": "64", "TOPS_METHOD": "tops:alpha=0.4:criteria=relevance+diversity"})
    expected = Pruning(keep=64, alpha=0.4, criteria="relevance,diversity", stages="first")
    assert pruning.resolved() == expected.resolved()
    assert kept_tokens(pruning, 576) == 64
    assert kept_tokens(pruning, 50) == 50


def test_workers_of_a_ray_cluster_get_the_variables() -> None:
    name = "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY"
    assert ray_environment({}) == {name: "TOPS_"}
    assert ray_environment({name: "MY_"}) == {name: "MY_,TOPS_"}


@pytest.mark.parametrize("method", served_methods())
def test_the_environment_says_the_same_again(method: str) -> None:
    pruning = for_vllm(Pruning(method=method, keep=0.3))
    assert read_pruning(environment_of(pruning)).resolved() == pruning.resolved()


def test_methods_that_choose_by_the_picture_are_served() -> None:
    assert {"divprune", "pooling", "random", "scope", "tops", "visionzip"} <= set(served_methods())


@pytest.mark.parametrize(
    ("method", "keep", "message"),
    [
        ("tops", "0", "give a fraction above 0"),
        ("tops", "much", "give a fraction above 0"),
        ("nosuch", "0.2", "There is no method 'nosuch'"),
        ("tops:stages=both", "0.2", "inside the language model"),
        ("tops:stages=second", "0.5", "inside the language model"),
        ("fastv", "0.2", "inside the language model"),
        ("trim", "0.2", "reads the question"),
        ("cdpruner", "0.2", "reads the question"),
        ("prumerge_plus", "0.2", "last layer of the vision tower"),
        ("divprune+fastv", "0.2", "inside the language model"),
        ("hiprune", "0.2", "attention of all patches"),
        ("none", "0.2", "prunes nothing"),
        ("resize", "0.2", "mm-processor-kwargs"),
        ("tops:allocation=coverage", "0.2", "pictures cannot divide a budget there; leave out"),
        ("tops:dedup=exact", "0.2", "leave out dedup, tower_keep and tower_layer"),
    ],
)
def test_what_vllm_cannot_do_is_refused(method: str, keep: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_pruning({"TOPS_KEEP": keep, "TOPS_METHOD": method})


def test_refusals_end_a_process_with_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPS_KEEP", "1.5")
    with pytest.raises(SystemExit, match=r"^TOPS: keep='1.5' is not allowed"):
        vllm_tops.register()


@pytest.mark.parametrize("options", [{"schedule": "0:64,4:16"}, {"positions": "original"}])
def test_only_a_budget_before_the_llm_is_taken(options: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="vLLM"):
        for_vllm(Pruning(**options))  # type: ignore[arg-type]


def test_less_than_one_token_is_no_budget() -> None:
    with pytest.raises(BudgetError, match="less than one of 576"):
        kept_tokens(read_pruning({"TOPS_KEEP": "0.001"}), 576)


def test_a_model_that_cannot_be_pruned_is_told_which_can() -> None:
    assert all(name in unsupported("SomeModel") for name in PRUNED)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mini", "--keep", "7.0"], "keep='7.0' is not allowed"),
        (["mini", "--method", "fastv"], "in vLLM, choose one of divprune, "),
        (["mini", "--enable-tower-connector-lora"], "adapters of the vision tower cannot be applied"),
        (["mini", "--video-pruning-rate", "0.5"], "set TOPS_METHOD (--method of tops serve) to evs or vidcom2"),
        (["--port", "8000", "mini"], "Name the model first"),
    ],
)
def test_the_command_checks_options_first(tops: Tops, arguments: list[str], message: str) -> None:
    result = tops("serve", *arguments)
    assert result.code == 1
    assert message in result.err
