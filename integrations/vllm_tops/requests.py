"""A budget per request: the field ``tops_keep`` in the body sets how many tokens the pictures of the request keep.

``"mm_processor_kwargs": {"tops_keep": 0.111}`` replaces ``TOPS_KEEP`` for the pictures of one request, and
``{"tops_keep": [0.5, 0.111]}`` has a budget for each of them, null for the server's. A family supports it in three
places: its processor derives from :class:`KeepPerRequest`, it announces :func:`announced_tokens` placeholders, and its
model passes the result of :func:`keeps_of` to the selection.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import BaseMultiModalProcessor, PromptReplacement, PromptUpdate

from tops_engine.budget import Keep
from tops_engine.errors import InvalidInput, quote
from tops_engine.settings import Pruning
from vllm_tops.settings import kept_tokens, read_pruning, with_keep

#: The name of the budget in a request and in the arguments of the model.
FIELD = "tops_keep"


@dataclass
class PictureBudgets:
    """The prunings of the pictures of the request that is being processed.

    Attributes:
        asked: One pruning for all pictures, or one for each of them.
        shown: The pictures that are being processed, of those of the request; None for all. vLLM processes only
            pictures that are not in its cache, and numbers them anew.
        number: The picture, of those, whose tokens are being counted; None outside of that.
    """

    asked: Pruning | list[Pruning]
    shown: list[int] | None = None
    number: int | None = None

    def of_request(self, num_pictures: int) -> list[Pruning]:
        """Return the pruning of each picture of the request.

        Raises:
            InvalidInput: If the request has another number of budgets than pictures.
        """
        if isinstance(self.asked, Pruning):
            return [self.asked] * num_pictures
        if len(self.asked) != num_pictures:
            raise InvalidInput(
                f"{FIELD} has {len(self.asked)} budgets for {num_pictures} pictures; give one for each, or one for all."
            )
        return self.asked

    def of_shown(self, num_pictures: int) -> list[Pruning]:
        """Return the pruning of each picture that is being processed."""
        if isinstance(self.asked, Pruning) or self.shown is None:
            return self.of_request(num_pictures)
        return [self.asked[number] for number in self.shown]

    def of_number(self, number: int | None) -> Pruning:
        """Return the pruning of the picture ``number`` of those that are being processed, or of the one counted now."""
        number = self.number if number is None else number
        if isinstance(self.asked, Pruning):
            return self.asked
        # vLLM also asks what any picture may need, before it knows which one.
        return read_pruning() if number is None else self.asked[number if self.shown is None else self.shown[number]]


# The budgets of the request that is being processed. vLLM asks for token counts in places that have no access to it.
_requested: ContextVar[PictureBudgets | None] = ContextVar("requested", default=None)


def _budgets() -> PictureBudgets:
    return _requested.get() or PictureBudgets(read_pruning())


def announced_tokens(num_tokens: int, number: int | None = None) -> int:
    """Return how many of a picture's tokens are kept in the request that is being processed, or by default.

    Args:
        num_tokens: The tokens of the picture.
        number: The picture, of those that are being processed; None is the one whose replacement is being made.

    Raises:
        BudgetError: If the number is less than one.
        InvalidInput: If the request keeps more tokens than the server's own budget, for which its memory is planned.
    """
    server, pruning = read_pruning(), _budgets().of_number(number)
    count, most = kept_tokens(pruning, num_tokens), kept_tokens(server, num_tokens)
    if count > most:
        raise InvalidInput(
            f"{FIELD}={pruning.budget} keeps {count} of a picture's {num_tokens} tokens, but the server has planned "
            f"its memory for {most} (TOPS_KEEP={server.budget}); ask for {server.budget} or less."
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
        prunings = _budgets().of_request(inputs.mm_data_items.get_count("image", strict=False))
        by_keep = {pruning.budget: self._hashes(inputs, pruning) for pruning in prunings or [read_pruning()]}
        hashes = dict(next(iter(by_keep.values())))
        if prunings:
            hashes["image"] = [by_keep[pruning.budget]["image"][number] for number, pruning in enumerate(prunings)]
        return hashes

    def _hashes(self, inputs: Any, pruning: Pruning) -> Any:
        options = {**inputs.hf_processor_mm_kwargs, "tops": [pruning.label, pruning.budget]}
        return super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=options))

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Any) -> Any:
        budgets = _requested.get()
        if budgets is not None:
            cached = mm_is_cached.get("image", [])
            budgets.shown = [number for number, is_cached in enumerate(cached) if not is_cached]
        return super()._get_cache_missing_processor_kwargs(inputs, mm_is_cached)

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        processed = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        prunings = _budgets().of_shown(mm_items.get_count("image", strict=False))
        # A float64 holds all whole numbers up to this one; no picture has so many tokens.
        processed[FIELD] = torch.tensor([min(pruning.budget, 2**53) for pruning in prunings], dtype=torch.float64)
        return processed

    def _get_prompt_updates(self, *args: Any, **kwargs: Any) -> Any:
        return [_counting(update) for update in super()._get_prompt_updates(*args, **kwargs)]

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, FIELD: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}


def _counting(update: PromptUpdate) -> PromptUpdate:
    """Return the update of pictures, which notes the number of the picture while its tokens are counted."""
    content = update.content if isinstance(update, PromptReplacement) and update.modality == "image" else None
    if not callable(content):
        return update

    def counted(number: int) -> Any:
        budgets = _requested.get()
        if budgets is None:
            return content(number)
        before, budgets.number = budgets.number, number
        try:
            return content(number)
        finally:
            budgets.number = before

    return replace(update, replacement=counted)


@contextmanager
def _requesting(options: dict[str, object]) -> Iterator[None]:
    """Remove the budgets from the request's options, and use them until the context ends.

    Raises:
        InvalidInput: If a budget is not allowed, or the request has another option whose name begins with ``tops``.
    """
    budgets = PictureBudgets(_read_budgets(options.pop(FIELD))) if FIELD in options else None
    for name in options:
        if name.startswith("tops"):
            label = read_pruning().label
            raise InvalidInput(f"A request may set {FIELD}, not {quote(name)}: this server prunes by {label}.")
    token = _requested.set(budgets)
    try:
        yield
    finally:
        _requested.reset(token)


def _read_budgets(keep: object) -> Pruning | list[Pruning]:
    """Return the pruning of all pictures, or that of each of them; None is the server's."""
    server = read_pruning()
    if not isinstance(keep, list):
        return with_keep(server, keep)
    return [server if one is None else with_keep(server, one) for one in keep]
