"""A budget per request: the field ``tops_keep`` in the body sets how many tokens its pictures and videos keep.

``"mm_processor_kwargs": {"tops_keep": 0.111}`` replaces ``TOPS_KEEP`` for the pictures and videos of one request, and
``{"tops_keep": [0.5, 0.111]}`` has a budget for each of them, pictures first, null for the server's. A family supports
it in three places: its processor derives from :class:`KeepPerRequest`, it announces :func:`announced_tokens`
placeholders, and its model passes the result of :func:`keeps_of` to the selection.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ProcessorBatchItems
from vllm.multimodal.processing import BaseMultiModalProcessor, PromptReplacement, PromptUpdate

from tops_engine.budget import Keep
from tops_engine.errors import InvalidInput, quote
from tops_engine.settings import Pruning
from vllm_tops.settings import kept_tokens, read_pruning, with_keep

#: The name of the budget in a request.
FIELD = "tops_keep"

#: The names of the budgets in the arguments of the model, by modality.
ARGUMENTS = {"image": FIELD, "video": "tops_video_keep"}


@dataclass
class Budgets:
    """The prunings of the pictures and videos of the request that is being processed.

    Attributes:
        asked: One pruning for all of them, or by modality one for each.
        shown: By modality, the items that are being processed, of those of the request; without an entry all. vLLM
            processes only what is not in its cache, and numbers it anew.
        counted: The item, of those, whose tokens are being counted: its modality and number. None outside of that.
    """

    asked: Pruning | dict[str, list[Pruning]]
    shown: dict[str, list[int]] = field(default_factory=dict)
    counted: tuple[str, int] | None = None

    def of_request(self, modality: str, number: int) -> Pruning:
        """Return the pruning of an item of the request."""
        return self.asked if isinstance(self.asked, Pruning) else self.asked[modality][number]

    def of_shown(self, modality: str, number: int) -> Pruning:
        """Return the pruning of an item, by its number among those that are being processed."""
        return self.of_request(modality, self.shown[modality][number] if modality in self.shown else number)

    def of_counted(self) -> Pruning:
        """Return the pruning of the item whose tokens are being counted."""
        if self.counted is not None:
            return self.of_shown(*self.counted)
        # vLLM also asks what any item may need, before it knows which one.
        return self.asked if isinstance(self.asked, Pruning) else read_pruning()


# The budgets of the request that is being processed. vLLM asks for token counts in places that have no access to it.
_requested: ContextVar[Budgets | None] = ContextVar("requested", default=None)


def _budgets() -> Budgets:
    return _requested.get() or Budgets(read_pruning())


def announced_tokens(num_tokens: int) -> int:
    """Return how many tokens of the item that is being counted are kept, in its request or by default.

    Args:
        num_tokens: The tokens of the picture or video.

    Raises:
        BudgetError: If the number is less than one.
        InvalidInput: If the request keeps more tokens than the server's own budget, for which its memory is planned.
    """
    budgets, server = _budgets(), read_pruning()
    pruning = budgets.of_counted()
    count, most = kept_tokens(pruning, num_tokens), kept_tokens(server, num_tokens)
    if count > most:
        what = "video" if budgets.counted is not None and budgets.counted[0] == "video" else "picture"
        raise InvalidInput(
            f"{FIELD}={pruning.budget} keeps {count} of a {what}'s {num_tokens} tokens, but the server has planned "
            f"its memory for {most} (TOPS_KEEP={server.budget}); ask for {server.budget} or less."
        )
    return count


def keeps_of(arguments: dict[str, Any]) -> list[Keep]:
    """Remove the budgets of pictures and videos from the arguments of the model and return those that are given."""
    given = [arguments.pop(name, None) for name in ARGUMENTS.values()]
    return [keep if keep <= 1 else int(keep) for keeps in given if keeps is not None for keep in keeps.tolist()]


class KeepPerRequest(BaseMultiModalProcessor):
    """A processor that reads the request's budget; a family lists it before vLLM's own processor."""

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        options = dict(inputs.hf_processor_mm_kwargs)
        with _requesting(options, _counts(inputs.mm_data_items)):
            return super().apply(replace(inputs, hf_processor_mm_kwargs=options), timing_ctx)

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """Return hashes of each picture and video with its pruning, the keys of vLLM's caches."""
        prunings = {
            modality: [_budgets().of_request(modality, number) for number in range(count)]
            for modality, count in _counts(inputs.mm_data_items).items()
        }
        budgets = {pruning.budget: pruning for of_items in prunings.values() for pruning in of_items}
        by_budget = {pruning.budget: self._hashes(inputs, pruning) for pruning in budgets.values() or [read_pruning()]}
        hashes = dict(next(iter(by_budget.values())))
        for modality, of_items in prunings.items():
            if of_items:
                hashes[modality] = [by_budget[p.budget][modality][number] for number, p in enumerate(of_items)]
        return hashes

    def _hashes(self, inputs: Any, pruning: Pruning) -> Any:
        options = {**inputs.hf_processor_mm_kwargs, "tops": [pruning.label, pruning.budget]}
        return super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=options))

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Any) -> Any:
        budgets = _requested.get()
        if budgets is not None:
            budgets.shown = {
                modality: [number for number, is_cached in enumerate(cached) if not is_cached]
                for modality, cached in mm_is_cached.items()
            }
        return super()._get_cache_missing_processor_kwargs(inputs, mm_is_cached)

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        processed = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        for modality, count in _counts(mm_items).items():
            if not isinstance(mm_items.get(modality), ProcessorBatchItems):
                continue  # embeddings that the request contains, which are not pruned
            keeps = [_budgets().of_shown(modality, number).budget for number in range(count)]
            # A float64 holds all whole numbers up to this one; nothing has so many tokens.
            processed[ARGUMENTS[modality]] = torch.tensor([min(keep, 2**53) for keep in keeps], dtype=torch.float64)
        return processed

    def _get_prompt_updates(self, *args: Any, **kwargs: Any) -> Any:
        return [_counting(update) for update in super()._get_prompt_updates(*args, **kwargs)]

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        budgets = {
            name: MultiModalFieldConfig.batched(modality, keep_on_cpu=True) for modality, name in ARGUMENTS.items()
        }
        return {**fields, **budgets}


def counting(update: PromptUpdate, content: Any) -> PromptUpdate:
    """Return the update with another function for the content, which notes the item while its tokens are counted."""

    def counted(number: int) -> Any:
        budgets = _requested.get()
        if budgets is None:
            return content(number)
        before, budgets.counted = budgets.counted, (update.modality, number)
        try:
            return content(number)
        finally:
            budgets.counted = before

    return replace(update, replacement=counted)


def _counting(update: PromptUpdate) -> PromptUpdate:
    is_ours = isinstance(update, PromptReplacement) and update.modality in ARGUMENTS and callable(update.content)
    return counting(update, update.content) if is_ours else update


def _counts(items: Any) -> dict[str, int]:
    """Return the numbers of pictures and videos."""
    return {modality: items.get_count(modality, strict=False) for modality in ARGUMENTS}


@contextmanager
def _requesting(options: dict[str, object], counts: Mapping[str, int]) -> Iterator[None]:
    """Remove the budgets from the request's options, and use them until the context ends.

    Raises:
        InvalidInput: If a budget is not allowed, or the request has another option whose name begins with ``tops``.
    """
    budgets = Budgets(_read_budgets(options.pop(FIELD), counts)) if FIELD in options else None
    for name in options:
        if name.startswith("tops"):
            label = read_pruning().label
            raise InvalidInput(f"A request may set {FIELD}, not {quote(name)}: this server prunes by {label}.")
    token = _requested.set(budgets)
    try:
        yield
    finally:
        _requested.reset(token)


def _read_budgets(keep: object, counts: Mapping[str, int]) -> Pruning | dict[str, list[Pruning]]:
    """Return the pruning of all items, or by modality that of each; None is the server's.

    Raises:
        InvalidInput: If a budget is not allowed, or a list has another length than the request has pictures and videos.
    """
    server = read_pruning()
    if not isinstance(keep, list):
        return with_keep(server, keep)
    pictures, videos = counts["image"], counts["video"]
    if len(keep) not in (pictures, pictures + videos):
        asked_for = f"{pictures} pictures and then {videos} videos" if videos else f"{pictures} pictures"
        raise InvalidInput(f"{FIELD} has {len(keep)} budgets for {asked_for}; give one for each, or one for all.")
    read = [server if one is None else with_keep(server, one) for one in keep]
    return {"image": read[:pictures], "video": read[pictures:] or [server] * videos}
