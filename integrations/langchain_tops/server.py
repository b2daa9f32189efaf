"""The chat model's other half: what is different where the model runs behind a server."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list

from langchain_tops.settings import OF_GENERATION, OF_MODEL, OF_PRUNING
from tops_engine.errors import InvalidInput
from tops_engine.remote import RemoteEngine
from tops_engine.settings import Generation, Pruning

# Requests of one batch on their way at once, when the caller sets no max_concurrency.
IN_FLIGHT = 64

OF_THE_SERVER = OF_MODEL - {"model"}


class RemoteSettings(NamedTuple):
    """Whom to ask, what to keep (None is the server's own) and how to write."""

    engine: RemoteEngine
    pruning: Pruning | None
    generation: Generation


class Connection(NamedTuple):
    """How to reach a server; None is the engine's own default."""

    base_url: str
    api_key: str | None
    timeout: float | None
    max_retries: int | None


def read_remote_settings(options: Mapping[str, Any], connection: Connection) -> RemoteSettings:
    """Check options, under the engine's names; those of model and pruning that are not there are the server's.

    Raises:
        InvalidInput: If one is not allowed.
        MissingDependency: Without the openai library.
    """
    refuse_options_of_the_server(options)
    given = {name: value for name, value in options.items() if name in OF_PRUNING}
    return RemoteSettings(
        _engine(connection, options.get("model")),
        Pruning(**given) if given else None,
        Generation(**{name: value for name, value in options.items() if name in OF_GENERATION}),
    )


def refuse_options_of_the_server(options: Mapping[str, Any]) -> None:
    """Refuse what is decided where the model is loaded.

    Raises:
        InvalidInput: If one of these options is set.
    """
    for name in OF_THE_SERVER:
        if options.get(name) is not None:
            raise InvalidInput(
                f"{name} is decided where the model runs; with base_url, set it when starting the server."
            )


def in_flight(config: RunnableConfig | Sequence[RunnableConfig] | None, num_inputs: int) -> list[RunnableConfig]:
    """Configs of a batch that is bounded."""
    configs = get_config_list(config, num_inputs)
    return [{**one, "max_concurrency": one.get("max_concurrency") or IN_FLIGHT} for one in configs]


@lru_cache(maxsize=32)
def _engine(connection: Connection, model: str | None) -> RemoteEngine:
    """One for all chat models that reach a server alike: they share its connections."""
    limits = {"timeout": connection.timeout, "max_retries": connection.max_retries}
    given: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
    return RemoteEngine(connection.base_url, model, connection.api_key, **given)
