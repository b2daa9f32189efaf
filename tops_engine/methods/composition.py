"""Composition of two methods: the first prunes before the language model, the second between its layers."""

import difflib
import functools
import types
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

from pydantic import model_validator

from tops_engine.budget import Keep, Stage, target_tokens
from tops_engine.errors import BudgetError, listed, quote, shorten
from tops_engine.methods.base import METHODS, Method, Selection
from tops_engine.methods.tokens import LayerTokens, VisualTokens

#: What stands between the names of two methods, as in ``divprune+fastv``.
PLUS = "+"


def method_named(name: str) -> type[Method]:
    """Return the method with this name, or the composition of two, such as ``divprune+fastv``.

    Raises
    ------
    ValueError
        If there is no such method, or the methods cannot be composed.
    """
    parts = [part.strip() for part in name.split(PLUS)]
    for part in parts:
        if part not in METHODS:
            nearest_first = difflib.get_close_matches(part[:50], METHODS, n=len(METHODS), cutoff=0)
            raise ValueError(
                f"There is no method {shorten(repr(part), 20)}; choose one of {listed(nearest_first)}, or two: "
                "divprune+fastv"
            )
    if len(parts) == 1:
        return METHODS[parts[0]]
    if len(parts) > 2:
        raise ValueError(f"{quote(name)} names {len(parts)} methods; compose two at most, such as divprune+fastv")
    return _composition(METHODS[parts[0]], METHODS[parts[1]])


class Composition(Method, register=False):
    """Base class of compositions; its options are those of both methods.

    The first method keeps twice the budget before the language model, and the second meets the budget by what it keeps
    of these between the layers. If the picture has no more tokens than that, or the second method prunes too late for
    it, the first drops nothing. Position ids are numbered as the second method does by default.
    """

    first_type: ClassVar[type[Method]]
    second_type: ClassVar[type[Method]]

    @cached_property
    def first(self) -> Method:
        """The method before the language model, with its options."""
        return self._part(self.first_type, self.first_type.first_stage_options)

    @cached_property
    def second(self) -> Method:
        """The method between the layers, with its options."""
        return self._part(self.second_type, self.second_type.second_stage_options)

    @model_validator(mode="after")
    def _each_prunes_at_its_place(self) -> Self:
        if not self.first.prunes_before_the_llm or self.first.prunes_between_layers:
            raise ValueError(f"{self.first.name!r} with these options does not prune only before the language model")
        if self.second.prunes_before_the_llm or not self.second.prunes_between_layers:
            raise ValueError(f"{self.second.name!r} with these options does not prune only between layers")
        return self

    @property
    def selects_jointly(self) -> bool:
        return False

    def method_at(self, layer: int) -> Method:
        return self.first if layer == 0 else self.second

    def check_model(self, model: str) -> None:
        self.first.check_model(model)
        self.second.check_model(model)

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        target = target_tokens(keep, num_visual_tokens)
        num_first = min(num_visual_tokens, round(2 * target))
        try:
            return self.second.plan(num_first, num_layers, min(target / num_first, 1.0))
        except BudgetError:
            return self.second.plan(num_visual_tokens, num_layers, keep)

    def watched_layers(self, num_layers: int) -> range:
        return self.second.watched_layers(num_layers)

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        return self.first.select_visual(images, counts)

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        return self.second.select_at_layer(images, counts)

    def _part(self, kind: type[Method], fixed: Mapping[str, Any]) -> Method:
        given = {name: getattr(self, name) for name in kind.model_fields if name in self.model_fields_set}
        return kind(**{**fixed, **given})


@functools.cache
def _composition(first: type[Method], second: type[Method]) -> type[Composition]:
    """Return the class of a composition.

    It inherits the options of both methods with their checks. What it does is that of :class:`Composition`, which
    comes first.
    """
    name = f"{first.name}{PLUS}{second.name}"
    if first is second:
        raise ValueError(f"{name!r} names one method twice; compose two methods, such as divprune+fastv")
    if first.select_visual is Method.select_visual:
        raise ValueError(f"{name!r}: {first.name!r} does not prune before the language model; write divprune+fastv")
    if second.select_at_layer is Method.select_at_layer:
        raise ValueError(f"{name!r}: {second.name!r} does not prune between layers; write divprune+fastv")
    content = {
        "__module__": __name__,
        "__doc__": f"{first.__doc__}\n\nThen, between layers: {second.__doc__}",
        "name": name,
        "source": f"{first.source}; {second.source}",
        "first_type": first,
        "second_type": second,
        "default_positions": second.default_positions,
        "presets": {},
        "first_stage_options": {},
        "second_stage_options": {},
        "signals": first.signals,
        "reads_question": first.reads_question,
        "waits_for_device": first.waits_for_device or second.waits_for_device,
        "adaptive": Method.adaptive,
        "prunes_before_the_llm": Method.prunes_before_the_llm,
        "prunes_between_layers": Method.prunes_between_layers,
    }
    bases = (Composition, first, second)
    composed: type[Composition] = types.new_class(
        "Composed", bases, {"register": False}, lambda namespace: namespace.update(content)
    )
    return composed
