"""A budget per request: the field ``tops_keep`` in the body sets how many tokens the pictures of the request keep.

``"mm_processor_kwargs": {"tops_keep": 0.111}`` replaces ``TOPS_KEEP`` for the pictures of one request. A family
supports it in three places: its processor derives from :class:`KeepPerRequest`, it announces :func:`announced_tokens`
placeholders, and its model passes the result of :func:`keeps_of` to the selection.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import BaseMultiModalProcessor

from tops_engine.budget import Keep
from tops_engine.errors import InvalidInput, quote
from tops_engine.settings import Pruning
from vllm_tops.settings import kept_tokens, read_pruning, with_keep

#: The name of the budget in a request and in the arguments of the model.
FIELD = "tops_keep"

# The pruning of the request that is being processed. vLLM asks for token counts in places that have no access to it.
_requested: ContextVar[Pruning | None] = ContextVar("requested", default=None)


def announced_tokens(num_tokens: int) -> int:
    """Return how many of a picture's tokens are kept in the request that is being processed, or by default.

    Raises:
        BudgetError: If the number is less than one.
        InvalidInput: If the request keeps more tokens than the server's own budget, for which its memory is planned.
    """
    server = read_pruning()
    pruning = _requested.get() or server
    count, most = kept_tokens(pruning, num_tokens), kept_tokens(server, num_tokens)
    if count > most:
        raise InvalidInput(
            f"{FIELD}={pruning.keep} keeps {count} of a picture's {num_tokens} tokens, but the server has planned its "
            f"memory for {most} (TOPS_KEEP={server.keep}); ask for {server.keep} or less."
        )
    return count


def keeps_of(arguments: dict[str, Any]) -> list[Keep]:
    """Remove the budget of each picture from the arguments of the model and return it."""
    keeps = arguments.pop(FIELD, None)
    return [] if keeps is None else [keep if keep <= 1 else int(keep) for keep in keeps.tolist()]


class KeepPerRequest(BaseMultiModalProcessor):
    """A processor that reads the request's budget; a family lists it before vLLM's own processor."""

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        options = dict(inputs.hf_processor_mm_kwargs)
        with _requesting(options):
            return super().apply(replace(inputs, hf_processor_mm_kwargs=options), timing_ctx)

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """Return hashes of each picture and its pruning, the keys of vLLM's caches."""
        pruning = _requested.get() or read_pruning()
        options = {**inputs.hf_processor_mm_kwargs, "tops": [pruning.label, pruning.keep]}
        return super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=options))

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        processed = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        keep = (_requested.get() or read_pruning()).keep
        # A float64 holds all whole numbers up to this one; no picture has so many tokens.
        keeps = [min(keep, 2**53)] * mm_items.get_count("image", strict=False)
        processed[FIELD] = torch.tensor(keeps, dtype=torch.float64)
        return processed

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, FIELD: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}


@contextmanager
def _requesting(options: dict[str, object]) -> Iterator[None]:
    """Remove the budget from the request's options, and use it until the context ends.

    Raises:
        InvalidInput: If the budget is not allowed, or the request has another option whose name begins with ``tops``.
    """
    pruning = with_keep(read_pruning(), options.pop(FIELD)) if FIELD in options else None
    for name in options:
        if name.startswith("tops"):
            label = read_pruning().label
            raise InvalidInput(f"A request may set {FIELD}, not {quote(name)}: this server prunes by {label}.")
    token = _requested.set(pruning)
    try:
        yield
    finally:
        _requested.reset(token)
