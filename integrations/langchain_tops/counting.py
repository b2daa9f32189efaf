"""How the pictures of a model are counted and made smaller: by pruning, or by resizing."""

import base64
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache, partial
from math import floor
from typing import Any
from weakref import WeakKeyDictionary

from PIL import Image

from langchain_tops.budgets import Demand
from langchain_tops.chat_model import ChatTOPSLlava
from langchain_tops.content import extras_of
from langchain_tops.pictures import Picture
from langchain_tops.providers import CountTokens, Formula, formula_of, size_within
from tops_engine.budget import Keep, layer_average, target_tokens
from tops_engine.contract import ChatEngine
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, InvalidInput
from tops_engine.media.images import open_image
from tops_engine.remote import RemoteEngine
from tops_engine.remote.pruning import request_fields
from tops_engine.settings import Pruning

_counted: WeakKeyDictionary[ChatEngine[Any], dict[tuple[int, int], int]] = WeakKeyDictionary()


class Counting(ABC):
    """How a model counts pictures, and how a picture is sent with fewer tokens.

    Attributes:
        source: Where the counts come from, for the report.
    """

    source: str

    @abstractmethod
    def demand(self, picture: Picture, min_tokens: int, weight: float, protected: bool) -> Demand | None:
        """Return what a picture asks for; None if its tokens cannot be counted."""

    @abstractmethod
    def send(self, picture: Picture, demand: Demand, tokens: int) -> tuple[dict[str, Any] | None, int]:
        """Return the content block of a picture with at most so many tokens, and how many it has.

        The block is None if the picture can stay as it is.
        """


class Pruned(Counting):
    """A model on this machine that prunes: a picture gets a budget of its own.

    Tokens are layer-averages, as everywhere in TOPS. Those of a cascade are counted at its last budget, the largest, so
    that no reading of the prompt exceeds the limit.
    """

    def __init__(self, engine: Engine, pruning: Pruning) -> None:
        self.source = "the model"
        self._engine, self._pruning = engine, pruning.steps[-1]
        self._averages: dict[tuple[int, Keep | None], float] = {}

    def demand(self, picture: Picture, min_tokens: int, weight: float, protected: bool) -> Demand | None:
        if picture.look is None:
            return None
        tokens = _count(self._engine, *picture.look.size)
        full = int(self._average(tokens, picture.keep))
        least = min_tokens
        while least < full and not self._can_keep(tokens, least):
            least += 1
        return Demand(full, min(least, full), weight, protected)

    def send(self, picture: Picture, demand: Demand, tokens: int) -> tuple[dict[str, Any] | None, int]:
        return (None if tokens == demand.full else _with_keep(picture, tokens)), tokens

    def _average(self, tokens: int, keep: Keep | None) -> float:
        if (tokens, keep) not in self._averages:
            num_layers = self._engine.family.decoder.num_layers
            stages = self._pruning.stages(tokens, num_layers, keep)
            self._averages[tokens, keep] = layer_average(stages, tokens, num_layers)
        return self._averages[tokens, keep]

    def _can_keep(self, tokens: int, keep: int) -> bool:
        try:
            self._average(tokens, keep)
        except BudgetError:
            return False
        return True


class PrunedByServer(Counting):
    """A server that takes a budget for each picture of a request."""

    def __init__(self, engine: RemoteEngine, keep: Keep, served: Keep) -> None:
        self.source = "the server"
        self._engine, self._keep, self._served = engine, keep, served

    def demand(self, picture: Picture, min_tokens: int, weight: float, protected: bool) -> Demand | None:
        if picture.look is None:
            return None
        most = _count(self._engine, *picture.look.size)
        keep = self._keep if picture.keep is None else picture.keep
        # The server counts what its own budget leaves; a fraction is one of all tokens.
        unpruned = most / self._served if isinstance(self._served, float) else most
        full = max(1, int(min(most, keep if isinstance(keep, int) else keep * unpruned)))
        return Demand(full, min(min_tokens, full), weight, protected)

    def send(self, picture: Picture, demand: Demand, tokens: int) -> tuple[dict[str, Any] | None, int]:
        if tokens == demand.full:
            return None, tokens
        if isinstance(self._served, int):
            return _with_keep(picture, tokens), tokens
        # The count of a server includes the tokens around a picture, and more than its own budget is refused.
        most = _count(self._engine, *picture.look.size) if picture.look is not None else tokens
        return _with_keep(picture, max(0.001, floor(1000 * self._served * tokens / most) / 1000)), tokens


class Resized(Counting):
    """A model that counts pictures by their size: a picture is scaled down."""

    def __init__(self, formula: Formula) -> None:
        self.source = f"{formula.source} ({formula.read})" if formula.read else formula.source
        self._formula = formula

    def demand(self, picture: Picture, min_tokens: int, weight: float, protected: bool) -> Demand | None:
        if picture.look is None:
            return None
        if picture.has_low_detail and self._formula.low_detail is not None:
            return Demand(self._formula.low_detail, self._formula.low_detail, weight, protected)
        size, count = picture.look.size, self._formula.count
        full = count(*size)
        if picture.keep is not None:
            full = count(*(size_within(*size, int(target_tokens(picture.keep, full)), count) or size))
        smallest = next(
            (count(*fits) for tokens in _steps(min_tokens, full) if (fits := size_within(*size, tokens, count))), full
        )
        return Demand(full, max(smallest, min(min_tokens, full)), weight, protected)

    def send(self, picture: Picture, demand: Demand, tokens: int) -> tuple[dict[str, Any] | None, int]:
        assert picture.look is not None
        assert picture.source is not None
        if picture.has_low_detail and self._formula.low_detail is not None:
            return None, tokens
        size = size_within(*picture.look.size, tokens, self._formula.count) or picture.look.size
        if size == picture.look.size:
            return None, self._formula.count(*size)
        data, mime_type = _resized(picture.source, size, str(picture.content.get("mime_type")))
        extras = {name: value for name, value in extras_of(picture.content).items() if name != "keep"}
        block = {"type": "image", "base64": data, "mime_type": mime_type}
        return block | ({"extras": extras} if extras else {}), self._formula.count(*size)


def counting_of(model: Any, formula: CountTokens | None, options: Mapping[str, Any]) -> Counting | None:
    """Return how a chat model counts pictures; None if that is not known.

    Args:
        model: A chat model.
        options: The options of the call.
        formula: From width and height to tokens, in place of what is known of the provider.

    Raises:
        InvalidInput: If a limit of cost sets the budget of the model, or a server cannot prune as it is asked to.
    """
    if formula is not None:
        return Resized(Formula(formula, "the given formula", read=""))
    if isinstance(model, ChatTOPSLlava):
        engine, pruning, _ = model.setup(options)
        if isinstance(engine, Engine) and pruning is not None and pruning.method != "none":
            if pruning.cost_limit is not None:
                raise InvalidInput(
                    f"{pruning.cost_limit} already limits the cost of the whole prompt, so a visual budget cannot "
                    "share tokens among its pictures; give the model keep instead, or leave out the visual budget."
                )
            return Pruned(engine, pruning)
        if isinstance(engine, RemoteEngine) and pruning is not None and pruning.method != "none":
            # A model with a keep of its own says that the server takes budgets from requests.
            _, served = engine.connect()
            if served is not None and served.method != "none":
                request_fields(pruning, served, engine.base_url)  # refuses what the server cannot do
                return PrunedByServer(engine, pruning.budget, served.budget)
        return Resized(Formula(partial(_count, engine), "the model", read=""))
    known = formula_of(model)
    return None if known is None else Resized(known)


def _with_keep(picture: Picture, keep: Keep) -> dict[str, Any]:
    """Return the block of a picture with a budget of its own."""
    content = {name: value for name, value in picture.content.items() if name != "keep"}
    return content | {"extras": {**extras_of(content), "keep": keep}}


def _count(engine: ChatEngine[Any], width: int, height: int) -> int:
    counts = _counted.setdefault(engine, {})
    if (width, height) not in counts:
        counts[width, height] = engine.count_visual_tokens(width, height)
    return counts[width, height]


def _steps(least: int, most: int) -> list[int]:
    """Return numbers from ``least`` on, each twice the one before, and ``most``."""
    steps = []
    while least < most:
        steps.append(least)
        least *= 2
    return [*steps, most]


@lru_cache(maxsize=64)
def _resized(source: str | bytes, size: tuple[int, int], mime_type: str) -> tuple[str, str]:
    """Return a picture of another size as base64, and its media type: JPEG if it was one, otherwise PNG."""
    mime_type = mime_type if mime_type == "image/jpeg" else "image/png"
    stream = io.BytesIO()
    open_image(source).resize(size, Image.Resampling.LANCZOS).save(stream, mime_type.removeprefix("image/").upper())
    return base64.b64encode(stream.getvalue()).decode(), mime_type
