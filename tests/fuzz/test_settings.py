"""Damaged options: of model, pruning and answer, as fields of the chat model, as options of one call, and as flags."""

import sys
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from langchain_tops import ChatTOPSLlava
from pydantic import ValidationError

from tests.fuzz.conversations import SAMPLE
from tests.fuzz.mutations import Mutator
from tests.fuzz.rules import check_sentence, level_memory, seeds, survives
from tops_engine import cli
from tops_engine.cli import output
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine, shared_engine
from tops_engine.methods import METHODS
from tops_engine.settings import Generation, ModelSpec, Pruning
from tops_engine.settings.labels import read_prunings
from tops_engine.settings.method_options import options_of

QUESTION = [user_message("What number is written?", SAMPLE)]

OF_MODEL: dict[str, Any] = {
    "model": "mini",
    "revision": None,
    "device": "cpu",
    "dtype": "float32",
    "attention": "sdpa",
    "quantization": None,
    "compile": False,
    "cache_mb": 10.0,
    "min_pixels": 784,
    "max_pixels": 100_000,
}
OF_GENERATION: dict[str, Any] = {
    "max_tokens": 2,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "repetition_penalty": 1.1,
    "stop": ["\n", "end"],
    "seed": 7,
    "thinking": "off",
    "json_schema": {"type": "object", "properties": {"n": {"type": "integer"}}},
}
#: Of the chat model alone.
OF_CHAT_MODEL: dict[str, Any] = {
    "allowed_image_hosts": ["*.example.org"],
    "streaming": False,
    "timeout": 5.0,
    "max_retries": 1,
    "stop_sequences": ["x"],
}
LABELS = ("tops:lambda=2.0:raters=last", "divprune,random", "all", "fitprune:recipe=x.json", "tops:alpha=0.5")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return shared_engine(ModelSpec(model="mini", device="cpu"))


@pytest.fixture(scope="module")
def model() -> ChatTOPSLlava:
    return ChatTOPSLlava(model="mini", device="cpu", max_tokens=1)


def of_pruning(random: Random) -> dict[str, Any]:
    """Return sound options of a pruning."""
    method = random.choice(sorted(METHODS))
    budget: dict[str, Any] = random.choice(({"keep": 0.4}, {"keep": 9}, {"keep": "0.3"}, {"schedule": "0:64,2:16"}))
    division: dict[str, Any] = random.choice(
        ({}, {"allocation": "erank"}, {"budget_per": "prompt"}, {"dedup": "exact"})
    )
    options: dict[str, Any] = {"method": method, "positions": "original"} | budget | division
    for name, field in options_of(method).items():
        if random.random() < 0.5:
            options[name] = field.get_default(call_default_factory=True, validated_data={})
    return options


def some(options: dict[str, Any], random: Random) -> dict[str, Any]:
    return {name: value for name, value in options.items() if random.random() < 0.5}


def damaged(options: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return options with one to four changes; at times they are no mapping of names, and then there are none."""
    changed = Mutator(seed).value(options)
    return {str(name): value for name, value in changed.items()} if isinstance(changed, dict) else {}


def test_damaged_settings_run_or_are_refused(engine: Engine) -> None:
    with level_memory("settings"):
        for seed in seeds("settings"):
            case, random = f"settings {seed}", Random(seed)
            survives(case, make, ModelSpec, damaged(OF_MODEL, seed))
            pruning = survives(case, make, Pruning, damaged(of_pruning(random), seed))
            generation = survives(case, make, Generation, damaged(OF_GENERATION, seed))
            labels = str(Mutator(seed).content(random.choice(LABELS).encode()), "latin-1")
            survives(case, read_prunings, labels, random.choice(("0.3,0.2", "x", "1", "0.5;9", "1e400", "")))
            if pruning is not None and random.random() < 0.5:
                short = (generation or Generation()).model_copy(update={"max_tokens": 2})
                survives(case, engine.chat, QUESTION, pruning, short)


def make(settings: Callable[..., Any], options: dict[str, Any]) -> Any:
    made = settings(**options)
    survives(f"{options!r:.200}", repr, made)
    return made


def test_damaged_fields_and_options_of_the_chat_model_are_refused(model: ChatTOPSLlava) -> None:
    with level_memory("chat model"):
        for seed in seeds("fields"):
            case, random = f"fields {seed}", Random(seed)
            options = some(OF_GENERATION, random) | some(of_pruning(random), random)
            if seed % 2:
                fields = damaged(OF_MODEL | OF_CHAT_MODEL | options, seed)
                check_fields(fields, case)
            else:
                survives(case, invoke, model, damaged(options, seed))


def check_fields(fields: dict[str, Any], case: str) -> None:
    """Make a chat model; what it raises is pydantic's error, with the sentences of the settings."""

    def make_model() -> None:
        try:
            ChatTOPSLlava(**fields)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                check_sentence(detail["msg"].removeprefix("Value error, "), case)

    survives(case, make_model)


def invoke(model: ChatTOPSLlava, options: dict[str, Any]) -> Any:
    return model.invoke("What digit?", **{"max_tokens": 1} | options)


def test_damaged_flags_are_one_line_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERMINAL_WIDTH", "400")
    monkeypatch.setattr(output.err, "width", 400)
    for seed in seeds("flags"):
        random = Random(seed)
        options = damaged(some(OF_MODEL, random) | some(OF_GENERATION, random) | some(of_pruning(random), random), seed)
        values = [(name, text(value)) for name, value in options.items() if name.isidentifier() and name != "compile"]
        flags = [part for name, value in values for part in (f"--{name.replace('_', '-')}", value)]
        command = ["tops", "ask", str(SAMPLE), "What?", *flags, "--model", "/nowhere"]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as exit:
            survives(f"flags {seed}", cli.main)
        assert exit.value.code in (1, 2)
        written = capsys.readouterr().err
        if exit.value.code == 1:  # 2 is typer's own: an option that it does not know or that lacks its value
            check_sentence(written.strip(), f"flags {seed}")


def text(value: Any) -> str:
    return str(value).replace("\0", "").encode("utf-8", "replace").decode()
