"""Test writing the chat model with LangChain's `dumps` and reading it with `loads`."""

import json
from typing import Any

import pytest
from langchain_core.load import dumps, loads
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.prompts.chat import HumanMessagePromptTemplate
from langchain_core.prompts.prompt import PromptTemplate
from langchain_core.runnables import RunnableSequence
from langchain_tops import ChatTOPSLlava

from tops_engine.methods import METHODS, Method
from tops_engine.methods.recipe import Recipe

KEY = "not-to-be-written"

pytestmark = pytest.mark.filterwarnings("ignore:The function `loads` is in beta")


def read(text: str, *others: Any) -> Any:
    return loads(
        text,
        allowed_objects=[ChatTOPSLlava, *others],
        valid_namespaces=["langchain_tops"],
        secrets_map={"TOPS_API_KEY": KEY},
    )


@pytest.mark.parametrize(
    "options",
    [
        {"model": "mini", "device": "cpu", "keep": 0.5, "stop": "x", "allowed_image_hosts": ("example.org",)},
        {"model": "mini", "method": "random", "seed": 3, "temperature": 0.5},
        {"model": "mini", "criteria": {"relevance", "coverage"}, "lambda": 0.0, "json_schema": {"type": "object"}},
        {"model": "mini", "schedule": "0:64,2:16", "cache_mb": 0},
        {"base_url": "http://localhost:1/v1"},
        {"base_url": "http://localhost:1/v1", "api_key": KEY, "keep": 0.222, "timeout": 3.0, "max_retries": 0},
    ],
)
def test_what_is_written_is_read_as_an_equal_model_and_holds_no_key(options: dict[str, Any]) -> None:
    model = ChatTOPSLlava(**options)
    text = dumps(model)
    assert json.loads(text)["id"] == ["langchain_tops", "ChatTOPSLlava"]
    assert KEY not in text
    again = read(text)
    assert again == model
    assert again.api_key == model.api_key
    assert again._identifying_params == model._identifying_params
    assert dumps(again) == text


def test_a_recipe_is_written_in_full() -> None:
    recipe = Recipe(
        model="mini",
        num_layers=3,
        keep=0.5,
        remaining=(1.0, 0.25, 0.25),
        divergence=0.1,
        tolerance=0.2,
        num_questions=9,
    )
    model = ChatTOPSLlava(model="mini", recipe=recipe)
    assert model._identifying_params["pruning"]["recipe"]["num_questions"] == 9
    again = read(dumps(model))
    assert again._identifying_params == model._identifying_params


def test_an_option_of_a_method_that_was_defined_later_is_written() -> None:
    class Later(Method):
        """Keep what a plugin keeps."""

        name = "later"
        source = "this test"
        plugin_option: int = 1

    try:
        again = read(dumps(ChatTOPSLlava(model="mini", method="later", plugin_option=7)))
        assert again._identifying_params["pruning"]["plugin_option"] == 7
    finally:
        METHODS.remove("later")


def test_a_chain_with_the_model_is_read_again() -> None:
    chain = ChatPromptTemplate.from_messages([("user", "What {thing}?")]) | ChatTOPSLlava(model="mini", keep=0.5)
    prompts = (RunnableSequence, ChatPromptTemplate, HumanMessagePromptTemplate, PromptTemplate)
    again = read(dumps(chain), *prompts)
    assert again.invoke({"thing": "colour"}).content == chain.invoke({"thing": "colour"}).content


def test_caches_distinguish_models_by_what_changes_an_answer_only() -> None:
    server = {"base_url": "http://localhost:1/v1"}
    assert ChatTOPSLlava(**server)._get_llm_string() == ChatTOPSLlava(**server, timeout=3.0)._get_llm_string()
    half, quarter = (ChatTOPSLlava(model="mini", keep=keep)._get_llm_string() for keep in (0.5, 0.25))
    assert half != quarter
