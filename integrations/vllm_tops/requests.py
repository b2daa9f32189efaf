"""A request's own budget: from the field ``tops_keep`` in its body to the tokens that its pictures keep.

``"mm_processor_kwargs": {"tops_keep": 0.111}`` takes the place of ``TOPS_KEEP`` for the pictures of one request. What a
family does for it: its processor derives from :class:`KeepPerRequest`, it announces as many placeholders as
:func:`announced_tokens` says, and its model hands what :func:`keeps_of` takes from its arguments to the selection.
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
from tops_engine.errors import InvalidInput
from tops_engine.settings import Pruning
from vllm_tops.settings import kept_tokens, read_pruning, with_keep

#: The name of the budget in a request, and of what the model gets beside a picture's pixels.
FIELD = "tops_keep"

# Of the request that this thread is reading. vLLM asks for numbers of tokens in places that do not know the request.
_requested: ContextVar[Pruning | None] = ContextVar("requested", default=None)


def announced_tokens(num_tokens: int) -> int:
    """How many of a picture's tokens stay in the request that is being read, or by default.

    Raises:
        BudgetError: If that is less than one.
        InvalidInput: If the request asks for more than the server does, which is what it has memory for.
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
    """Take the budget of each picture out of what vLLM calls a model with."""
    keeps = arguments.pop(FIELD, None)
    return [] if keeps is None else [keep if keep <= 1 else int(keep) for keep in keeps.tolist()]


class KeepPerRequest(BaseMultiModalProcessor):
    """A processor of vLLM that reads the request's budget; a family puts it before its own processor."""

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        options = dict(inputs.hf_processor_mm_kwargs)
        with _requesting(options):
            return super().apply(replace(inputs, hf_processor_mm_kwargs=options), timing_ctx)

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """What vLLM's caches know a picture by: the picture and how it is pruned."""
        pruning = _requested.get() or read_pruning()
        options = {**inputs.hf_processor_mm_kwargs, "tops": [pruning.label, pruning.keep]}
        return super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=options))

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        processed = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        keep = (_requested.get() or read_pruning()).keep
        # A float64 holds whole numbers up to this one; no picture has as many tokens.
        keeps = [min(keep, 2**53)] * mm_items.get_count("image", strict=False)
        processed[FIELD] = torch.tensor(keeps, dtype=torch.float64)
        return processed

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, FIELD: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}


@contextmanager
def _requesting(options: dict[str, object]) -> Iterator[None]:
    """Take a request's budget out of its options, and prune by it meanwhile.

    Raises:
        InvalidInput: If the budget is not allowed, or the request asks for more than a budget.
    """
    pruning = with_keep(read_pruning(), options.pop(FIELD)) if FIELD in options else None
    for name in options:
        if name.startswith("tops"):
            label = read_pruning().label
            raise InvalidInput(f"A request may set {FIELD}, not {name!r}: this server prunes by {label}.")
    token = _requested.set(pruning)
    try:
        yield
    finally:
        _requested.reset(token)
