"""What is pruned, and how: read from the environment, which all of vLLM's processes share."""

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from tops_engine.errors import InvalidInput
from tops_engine.methods import METHODS
from tops_engine.settings import Pruning


def read_pruning(environment: Mapping[str, str] = os.environ) -> Pruning:
    """The pruning that ``TOPS_KEEP`` (0.222, or a number of tokens) and ``TOPS_METHOD`` ask for.

    ``TOPS_METHOD`` is a method with its options as everywhere else, such as ``tops:alpha=0.4``; unset, it is ``tops``.

    Raises:
        InvalidInput: If they are not allowed, or the method needs what vLLM does not give.
    """
    return _read(environment.get("TOPS_METHOD") or "tops", environment["TOPS_KEEP"])


@cache
def _read(method: str, keep: str) -> Pruning:
    return before_the_llm(Pruning.from_label(method, keep.strip()))


def environment_of(pruning: Pruning) -> dict[str, str]:
    """The variables that :func:`read_pruning` reads this pruning from."""
    return {"TOPS_KEEP": str(pruning.keep), "TOPS_METHOD": pruning.label}


def ray_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What makes vLLM hand the variables on to its processes on other machines of a Ray cluster."""
    name = "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY"
    return {name: ",".join(filter(None, [environment.get(name), "TOPS_"]))}


def before_the_llm(pruning: Pruning) -> Pruning:
    """The same pruning with all of it before the language model, where vLLM lets it happen.

    Raises:
        InvalidInput: If that is another method, or the pruning needs something else that vLLM does not give.
    """
    if pruning.schedule is not None:
        raise InvalidInput("vLLM takes a budget by keep; a schedule prunes between layers, where vLLM cannot.")
    if pruning.positions == "original":
        raise InvalidInput("vLLM numbers the tokens that remain without gaps; leave out positions=original.")
    pruning = pruning.before_the_llm()
    reason = _refusal(pruning)
    if reason is not None:
        raise InvalidInput(f"{reason}; in vLLM, choose one of {', '.join(served_methods())}.")
    return pruning


def with_keep(pruning: Pruning, keep: object) -> Pruning:
    """The same pruning at another budget.

    Raises:
        InvalidInput: If the budget is not allowed.
    """
    allowed: Any = {"keep": keep}
    return pruning.model_copy(update={"keep": Pruning(**allowed).keep})


def served_methods() -> list[str]:
    """The methods that vLLM can run, by name."""
    return [name for name in METHODS if _refusal(Pruning(method=name).before_the_llm()) is None]


def kept_tokens(pruning: Pruning, num_tokens: int) -> int:
    """How many of a picture's tokens stay: the same in all layers, so that this is their layer-average.

    Raises:
        BudgetError: If that is less than one.
    """
    return pruning.stages(num_tokens, num_layers=1)[0].num_tokens


def _refusal(pruning: Pruning) -> str | None:
    method = pruning.build
    name = f"Method {pruning.label!r}"
    if method.prunes_between_layers:
        return f"{name} chooses tokens inside the language model, where all layers of vLLM's paged cache hold the same"
    if not method.prunes_before_the_llm:
        return f"{name} prunes nothing"
    if method.reads_question:
        return f"{name} reads the question, but vLLM keeps what it made of a picture for other questions"
    if method.reads_last_layer:
        return f"{name} reads the last layer of the vision tower, which vLLM does not load"
    return None


def refuse_tower_adapters(enabled: bool) -> None:
    """Raise an error where adapters are to be applied to the vision tower (``--enable-tower-connector-lora``).

    vLLM would count their rows by the tokens that remain of a picture.

    Raises:
        InvalidInput: If they are.
    """
    if enabled:
        raise InvalidInput(
            "LoRA adapters of the vision tower cannot be applied where its tokens are pruned; leave out "
            "--enable-tower-connector-lora, or merge the adapter into the model's weights."
        )
