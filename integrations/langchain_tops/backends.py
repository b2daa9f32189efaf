"""Where the model of a chat model runs: the interface of all places, and the one on this machine."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection, Mapping
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage
from langchain_core.runnables.config import run_in_executor

from langchain_tops.batching import Configs, Table, abatch_together, batch_together, current_seat
from langchain_tops.profile import model_profile
from langchain_tops.settings import read_settings
from tops_engine.answers.base import BaseAnswer, Piece
from tops_engine.contract import ChatEngine, Request
from tops_engine.engine import Engine
from tops_engine.settings import Generation, Pruning

EngineT = TypeVar("EngineT", bound=ChatEngine[BaseAnswer])


class Setup(NamedTuple, Generic[EngineT]):
    """The objects for the options of a call: engine, pruning (None is the engine's own default) and generation."""

    engine: EngineT
    pruning: Pruning | None
    generation: Generation


class Backend(ABC, Generic[EngineT]):
    """Where a model runs, and how its calls are brought together."""

    @abstractmethod
    def fields_left_open(self, names: Collection[str], given: Collection[str]) -> Collection[str]:
        """Return the options of the engine, of ``names``, that stay unset unless they were ``given``."""

    @abstractmethod
    def read(self, options: Mapping[str, Any]) -> Setup[EngineT]:
        """Check options, under the engine's names.

        Raises:
            InvalidInput: If an option is not allowed.
            MissingDependency: If a library is missing.
        """

    @abstractmethod
    def identify(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return everything that changes an answer; caches distinguish models by it."""

    @abstractmethod
    def profile(self, model: str, is_given: bool, image_urls: bool) -> ModelProfile:
        """Return what the model can do. ``is_given`` says whether the user chose the model."""

    @abstractmethod
    def answer(self, engine: EngineT, request: Request) -> BaseAnswer:
        """Answer one request."""

    @abstractmethod
    async def aanswer(self, engine: EngineT, request: Request) -> BaseAnswer:
        """Answer one request in an event loop; cancelling the task stops the writing."""

    @abstractmethod
    def astream(self, engine: EngineT, request: Request) -> AsyncGenerator[Piece | BaseAnswer, None]:
        """Answer one request piece by piece in an event loop."""

    @abstractmethod
    def batch(
        self,
        model: BaseChatModel,
        inputs: list[LanguageModelInput],
        config: Configs,
        return_exceptions: bool,
        options: Mapping[str, Any],
    ) -> list[AIMessage]:
        """Invoke the model on several inputs."""

    @abstractmethod
    async def abatch(
        self,
        model: BaseChatModel,
        inputs: list[LanguageModelInput],
        config: Configs,
        return_exceptions: bool,
        options: Mapping[str, Any],
    ) -> list[AIMessage]:
        """Invoke the model on several inputs in an event loop."""


class LocalBackend(Backend[Engine]):
    """The model runs on this machine; the calls of a batch are answered in one run."""

    def fields_left_open(self, names: Collection[str], given: Collection[str]) -> Collection[str]:
        return ()

    def read(self, options: Mapping[str, Any]) -> Setup[Engine]:
        settings = read_settings(options)
        return Setup(settings.engine, settings.pruning, settings.generation)

    def identify(self, options: Mapping[str, Any]) -> dict[str, Any]:
        settings = read_settings(options)
        params = settings.spec.model_dump(mode="json") | settings.generation.model_dump(mode="json")
        return params | {"pruning": settings.pruning.resolved()}

    def profile(self, model: str, is_given: bool, image_urls: bool) -> ModelProfile:
        return model_profile(model, image_urls, is_remote=False)

    def answer(self, engine: Engine, request: Request) -> BaseAnswer:
        seat = current_seat()
        if seat is not None and seat.take():
            return seat.table.ask(engine, request).result()
        return engine.run([request])[0]

    async def aanswer(self, engine: Engine, request: Request) -> BaseAnswer:
        seat = current_seat()
        # A call outside of a batch has a table of its own.
        table = seat.table if seat is not None and seat.take() else Table(1)
        future = table.ask(engine, request)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            table.cancel_one()
            raise

    async def astream(self, engine: Engine, request: Request) -> AsyncGenerator[Piece | BaseAnswer, None]:
        pieces = engine.run_stream(request)
        while (piece := await run_in_executor(None, next, pieces, None)) is not None:
            yield piece

    def batch(
        self,
        model: BaseChatModel,
        inputs: list[LanguageModelInput],
        config: Configs,
        return_exceptions: bool,
        options: Mapping[str, Any],
    ) -> list[AIMessage]:
        return batch_together(partial(model.invoke, **options), inputs, config, return_exceptions)

    async def abatch(
        self,
        model: BaseChatModel,
        inputs: list[LanguageModelInput],
        config: Configs,
        return_exceptions: bool,
        options: Mapping[str, Any],
    ) -> list[AIMessage]:
        return await abatch_together(partial(model.ainvoke, **options), inputs, config, return_exceptions)
