"""The pruning of a server, read from the environment, which all processes of vLLM share."""

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from tops_engine.errors import InvalidInput, listed
from tops_engine.methods import METHODS
from tops_engine.methods.resize import Resize
from tops_engine.settings import Pruning
from tops_engine.settings.allocation import divides_budget
from tops_engine.tower import WHOLE_TOWER

#: Signals of the vision tower that the pruning in vLLM does not have, and why.
NOT_IN_VLLM = {
    "last_layer_attention": "the last layer of the vision tower, which vLLM does not load",
    "last_layer_keys": "the last layer of the vision tower, which vLLM does not load",
    "middle_attention": "a layer in the middle of the vision tower, which is not captured in vLLM",
    "shallow_attention": "an early layer of the vision tower, which is not captured in vLLM",
    "received_attention": "the attention of all patches, which is not computed in vLLM",
}


def read_pruning(environment: Mapping[str, str] = os.environ) -> Pruning:
    """Return the pruning that ``TOPS_KEEP`` and ``TOPS_METHOD`` set.

    ``TOPS_KEEP`` is a fraction (0.222) or a number of tokens. ``TOPS_METHOD`` is a method with its options, such as
    ``tops:alpha=0.4``; the default is ``tops``.

    Raises:
        InvalidInput: If a value is not allowed, or vLLM cannot run the method.
    """
    return _read(environment.get("TOPS_METHOD") or "tops", environment["TOPS_KEEP"])


@cache
def _read(method: str, keep: str) -> Pruning:
    return for_vllm(Pruning.from_label(method, keep.strip()))


def environment_of(pruning: Pruning) -> dict[str, str]:
    """Return the variables from which :func:`read_pruning` reads this pruning."""
    return {"TOPS_KEEP": str(pruning.budget), "TOPS_METHOD": pruning.label}


def ray_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variable that makes vLLM copy ours to its processes on other machines of a Ray cluster."""
    name = "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY"
    return {name: ",".join(filter(None, [environment.get(name), "TOPS_"]))}


def for_vllm(pruning: Pruning) -> Pruning:
    """Return the pruning as vLLM runs it, entirely before the language model.

    Raises:
        InvalidInput: If vLLM cannot run the method or one of the options.
    """
    if pruning.schedule is not None:
        raise InvalidInput("vLLM cannot prune between layers, as a schedule does; set the budget by keep.")
    if len(pruning.steps) > 1 or pruning.cost_limit is not None:
        raise InvalidInput("vLLM reads a prompt once, with one budget; give keep a single value.")
    if pruning.rectify != "none":
        raise InvalidInput("vLLM's attention takes no bias; leave out rectify.")
    if divides_budget(pruning):
        raise InvalidInput(
            "vLLM numbers a prompt before the vision tower has run, so pictures cannot divide a budget there; leave "
            "out allocation and budget_per, or give each picture its own budget by tops_keep in the request."
        )
    if pruning.tower_options != WHOLE_TOWER:
        raise InvalidInput("vLLM runs the vision tower as it is; leave out dedup, tower_keep and tower_layer.")
    if pruning.positions == "original":
        raise InvalidInput("vLLM renumbers the remaining tokens without gaps; leave out positions=original.")
    pruning = pruning.before_the_llm()
    reason = _refusal(pruning)
    if reason is not None:
        raise InvalidInput(f"{reason}; in vLLM, choose one of {listed(served_methods())}.")
    return pruning


def with_keep(pruning: Pruning, keep: object) -> Pruning:
    """Return the pruning with another budget.

    Raises:
        InvalidInput: If the budget is not allowed.
    """
    allowed: Any = {"keep": keep}
    return pruning.model_copy(update={"keep": Pruning(**allowed).budget})


def served_methods() -> list[str]:
    """Return the names of the methods that vLLM can run."""
    return [name for name in METHODS if _refusal(Pruning(method=name).before_the_llm()) is None]


def kept_tokens(pruning: Pruning, num_tokens: int) -> int:
    """Return the number of kept tokens of a picture. All layers see the same number, so it is the layer-average.

    Raises:
        BudgetError: If the number is less than one.
    """
    return pruning.stages(num_tokens, num_layers=1)[0].num_tokens


def _refusal(pruning: Pruning) -> str | None:
    method = pruning.method_instance
    name = f"Method {pruning.label!r}"
    if method.prunes_between_layers:
        return f"{name} prunes inside the language model, but all layers of vLLM's paged cache hold the same tokens"
    if isinstance(method, Resize):
        return f"{name} makes pictures smaller, which vLLM's own --mm-processor-kwargs do"
    if not method.prunes_before_the_llm:
        return f"{name} prunes nothing"
    if method.reads_question:
        return f"{name} reads the question, but vLLM reuses the tokens of a picture for other questions"
    for signal in method.signals:
        if signal in NOT_IN_VLLM:
            return f"{name} reads {NOT_IN_VLLM[signal]}"
    return None
