"""The model of a chat model behind a server."""

from collections.abc import AsyncGenerator, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list

from langchain_tops.backends import Backend, Setup
from langchain_tops.batching import Configs
from langchain_tops.profile import model_profile
from langchain_tops.settings import OF_GENERATION, OF_MODEL, of_pruning
from tops_engine.answers.base import BaseAnswer, Piece
from tops_engine.contract import Request
from tops_engine.encoding.places import HERE, encoder_at
from tops_engine.errors import InvalidInput
from tops_engine.remote import RemoteEngine
from tops_engine.remote.server import checked_address
from tops_engine.settings import Generation, Pruning

# How many requests of a batch are sent at once if the caller sets no max_concurrency.
IN_FLIGHT = 64

OF_THE_SERVER = OF_MODEL - {"model"}


@dataclass(frozen=True)
class ServerBackend(Backend[RemoteEngine]):
    """The model runs behind an OpenAI-compatible server; the server brings the calls of a batch together.

    Options of the model and of the pruning that are not given are decided by the server.

    Attributes:
        base_url: The address of the server.
        api_key: What the server demands.
        timeout, max_retries: The limits of :class:`RemoteEngine`; None is its own default.
        encode: Where pictures are encoded and pruned before they are sent; None sends the pictures.
    """

    base_url: str
    api_key: str | None = field(repr=False)
    timeout: float | None
    max_retries: int | None
    encode: str | None = None

    def fields_left_open(self, names: Collection[str], given: Collection[str]) -> Collection[str]:
        return set(names) - OF_GENERATION - set(given)

    def read(self, options: Mapping[str, Any]) -> Setup[RemoteEngine]:
        refuse_options_of_the_server(options, self.encode)
        names = of_pruning()
        given = {name: value for name, value in options.items() if name in names}
        of_the_tower = tuple((name, options[name]) for name in sorted(OF_THE_SERVER & options.keys()))
        return Setup(
            _engine(self, options.get("model"), of_the_tower),
            Pruning(**given) if given else None,
            Generation(**{name: value for name, value in options.items() if name in OF_GENERATION}),
        )

    def identify(self, options: Mapping[str, Any]) -> dict[str, Any]:
        encode = {} if self.encode is None else {"encode": self.encode}
        return dict(options) | {"base_url": self.base_url} | encode

    def profile(self, model: str, is_given: bool, image_urls: bool) -> ModelProfile:
        return model_profile(model if is_given else None, image_urls, is_remote=True)

    def answer(self, engine: RemoteEngine, request: Request) -> BaseAnswer:
        return engine.run([request])[0]

    async def aanswer(self, engine: RemoteEngine, request: Request) -> BaseAnswer:
        return (await engine.arun([request]))[0]

    def astream(self, engine: RemoteEngine, request: Request) -> AsyncGenerator[Piece | BaseAnswer, None]:
        return engine.arun_stream(request)

    def batch(
        self,
        model: BaseChatModel,
        inputs: list[LanguageModelInput],
        config: Configs,
        return_exceptions: bool,
        options: Mapping[str, Any],
    ) -> list[AIMessage]:
        configs = _bounded(config, len(inputs))
        return BaseChatModel.batch(model, inputs, configs, return_exceptions=return_exceptions, **options)

    async def abatch(
        self,
        model: BaseChatModel,
        inputs: list[LanguageModelInput],
        config: Configs,
        return_exceptions: bool,
        options: Mapping[str, Any],
    ) -> list[AIMessage]:
        configs = _bounded(config, len(inputs))
        return await BaseChatModel.abatch(model, inputs, configs, return_exceptions=return_exceptions, **options)


def check_options_of_a_server(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a chat model that has a ``base_url``, with the whole address.

    Raises:
        InvalidInput: If an address is not valid, or an option is decided by the server.
    """
    checked = options | {"base_url": checked_address(str(options["base_url"]))}
    encode = options.get("encode")
    refuse_options_of_the_server(options, encode)
    if encode is not None:
        encoder_at(str(encode))
    return checked


def refuse_options_of_the_server(options: Mapping[str, Any], encode: str | None = None) -> None:
    """Refuse options that are decided where the model is loaded.

    Raises:
        InvalidInput: If one of these options is set, unless they are those of a vision tower ``here``.
    """
    if encode == HERE:
        return
    for name in OF_THE_SERVER:
        if options.get(name) is not None:
            raise InvalidInput(
                f"{name} is decided where the model runs; with base_url, set it when starting the server."
            )


def _bounded(config: Configs, num_inputs: int) -> list[RunnableConfig]:
    """Return the configs of a batch with a bound on the requests that are sent at once."""
    configs = get_config_list(config, num_inputs)
    return [{**one, "max_concurrency": one.get("max_concurrency") or IN_FLIGHT} for one in configs]


@lru_cache(maxsize=32)
def _engine(backend: ServerBackend, model: str | None, of_the_tower: tuple[tuple[str, Any], ...]) -> RemoteEngine:
    """Return one engine for all chat models that reach a server in the same way, so that they share connections."""
    limits = {"timeout": backend.timeout, "max_retries": backend.max_retries}
    given: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
    if backend.encode is not None:
        given["encoder"] = encoder_at(backend.encode, backend.api_key, **dict(of_the_tower))
    return RemoteEngine(backend.base_url, model, backend.api_key, **given)
