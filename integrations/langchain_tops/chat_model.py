"""The chat model."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import run_in_executor
from pydantic import ConfigDict, Field, SecretStr, model_validator

from langchain_tops import tools as tool_options
from langchain_tops.batching import Request, Table, abatch_together, batch_together, current_seat
from langchain_tops.content import engine_messages
from langchain_tops.profile import model_profile
from langchain_tops.remote import fetch
from langchain_tops.results import AnyAnswer, as_message, last_chunk
from langchain_tops.server import (
    Connection,
    RemoteSettings,
    in_flight,
    read_remote_settings,
    refuse_options_of_the_server,
)
from langchain_tops.settings import (
    OF_GENERATION,
    SETTING_NAMES,
    SettingFields,
    Settings,
    common_names,
    override,
    read_settings,
    refuse_unknown,
)
from langchain_tops.structured import Method, Schema, structured_output
from tops_engine import __version__
from tops_engine.conversation.tools import Tools
from tops_engine.errors import TopsError
from tops_engine.remote.server import checked_address

# Keywords of calls that are LangChain's business.
OF_LANGCHAIN = frozenset(["stream", "strict", "timeout", "max_retries"])


class ChatTOPSLlava(SettingFields):
    """A vision-language model that keeps only the visual tokens that matter, on this machine or behind a server.

    Every option of the engine is a field: which model (``model``, ``device``, ``dtype`` ...), what to keep
    (``method``, ``keep``, ``schedule`` and the options of the methods), how to write (``max_tokens``,
    ``temperature``, ``stop`` ...). Each can be given for one call, ``invoke(..., keep=0.1)``, by ``bind`` and as a
    configurable field. The weights are loaded at the first question and shared by all models with the same spec.

    With ``base_url`` the model runs behind an OpenAI-compatible server, such as ``tops serve`` starts. What is then the
    server's business is unset (None): the model is its only one, the pruning its own; ``keep`` may ask for less.

    Example:
        .. code-block:: python

            from langchain_tops import ChatTOPSLlava, image_block

            model = ChatTOPSLlava(model="llava-hf/llava-1.5-7b-hf", keep=0.222)
            answer = model.invoke([("user", [image_block("photo.jpg"), {"type": "text", "text": "What is this?"}])])
            answer.usage_metadata["input_token_details"]  # visual tokens before and after pruning

    Raises:
        pydantic.ValidationError: A ``ValueError``; an option does not exist or has a value that is not allowed.
        tops_engine.errors.TopsError: When asked; ``InvalidInput`` and its kind are ``ValueError`` as well.
    """

    # The input in pydantic's errors would hold the key.
    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=(), hide_input_in_errors=True)

    allowed_image_hosts: tuple[str, ...] = Field(
        default=(),
        description="Hosts http(s) pictures may come from: names, *.example.org, or * for any public host. None by "
        "default; private addresses are always refused.",
    )
    streaming: bool = Field(default=False, description="Stream also where invoke is called.")
    base_url: str | None = Field(
        default=None,
        description="Address of an OpenAI-compatible server that runs the model, such as http://host:8000/v1; unset, "
        "the model runs here.",
    )
    timeout: float | None = Field(
        default=None,
        exclude=True,
        description="With base_url: seconds without a sign of life, for each attempt (600). Else without effect.",
    )
    max_retries: int | None = Field(
        default=None,
        exclude=True,
        description="With base_url: how often a request is repeated that found no connection, or a server that was "
        "busy or failed (2). Else without effect.",
    )
    api_key: SecretStr | None = Field(
        default=None, exclude=True, description="With base_url: what the server demands. Else without effect."
    )

    @model_validator(mode="before")
    @classmethod
    def _checked_by_the_settings(cls, values: Any) -> Any:
        """Bring options into the form the settings give them, with the settings' own errors."""
        if not isinstance(values, dict):
            return values
        options = {name: value for name, value in common_names(values).items() if value is not None}
        fields = {field.alias or name for name, field in cls.model_fields.items()}
        refuse_unknown(options, fields)
        if "base_url" in options:
            options["base_url"] = checked_address(str(options["base_url"]))
            refuse_options_of_the_server(options)
        for group in read_settings(options):
            for name in options.keys() & type(group).model_fields.keys():
                options[name] = getattr(group, name)
        return options

    @model_validator(mode="after")
    def _leave_the_rest_to_the_server(self) -> "ChatTOPSLlava":
        if self.base_url is not None:
            given = self.model_fields_set | OF_GENERATION
            names = {(field.alias or name): name for name, field in type(self).model_fields.items()}
            self.__dict__.update({names[name]: None for name in SETTING_NAMES if names[name] not in given})
        return self

    @model_validator(mode="after")
    def _note_version_of_tops(self) -> "ChatTOPSLlava":
        self._add_version("tops-engine", __version__)
        return self

    @property
    def _llm_type(self) -> str:
        return "tops"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """Every option that changes an answer: caches tell models apart by it."""
        options = self._options()
        if self.base_url is not None:
            return options | {"base_url": self.base_url}
        settings = read_settings(options)
        params = settings.spec.model_dump(mode="json") | settings.generation.model_dump(mode="json")
        return params | {"pruning": settings.pruning.resolved()}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        generation = read_settings(self._options(common_names(_settings_in(kwargs)))).generation
        params["ls_provider"] = "tops"
        params["ls_temperature"] = generation.temperature
        params["ls_max_tokens"] = generation.max_tokens
        if stop or generation.stop:
            params["ls_stop"] = list(stop or generation.stop)
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        is_remote = self.base_url is not None
        model = None if is_remote and "model" not in self.model_fields_set else self.model
        return model_profile(model, image_urls=bool(self.allowed_image_hosts), is_remote=is_remote)

    def _options(self, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All options under the engine's names, those of one call included."""
        values = common_names({name: getattr(self, name) for name in type(self).model_fields})
        given = {name: value for name, value in values.items() if name in SETTING_NAMES and value is not None}
        return override(given, changes or {})

    def _settings(self, changes: Mapping[str, Any], options: Mapping[str, Any]) -> Settings | RemoteSettings:
        """What one call runs with: the model's options, the call's ``changes`` of them, and of LangChain's own."""
        if self.base_url is None:
            return read_settings(self._options(changes))
        limits = [options.get(name, getattr(self, name)) for name in ("timeout", "max_retries")]
        key = None if self.api_key is None else self.api_key.get_secret_value()
        return read_remote_settings(self._options(changes), Connection(self.base_url, key, *limits))

    def _request(self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, options: dict[str, Any]) -> Request:
        """What a call asks of the engine.

        Raises:
            InvalidInput: If a message, a tool or an option cannot be used.
        """
        changes = {name: value for name, value in options.items() if name not in OF_LANGCHAIN}
        tools = tool_options.read_tools(changes)
        changes = common_names(tool_options.read_format(changes))
        if stop is not None:
            changes["stop"] = tuple(stop)
        refuse_unknown(changes, SETTING_NAMES)
        settings = self._settings(changes, options)
        conversation = engine_messages(messages, partial(fetch, allowed_hosts=self.allowed_image_hosts))
        told = tool_options.with_schema_told(conversation, options.get("response_format"))
        return Request(settings, tools, told)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = self._request(messages, stop, kwargs)
        seat = current_seat()
        if self.base_url is None and seat is not None and seat.take():
            return _result(seat.table.ask(request, answer_requests).result())
        return _result(answer_requests([request])[0])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = await run_in_executor(None, self._request, messages, stop, kwargs)
        if isinstance(request.settings, RemoteSettings):
            engine, pruning, generation = request.settings
            return _result(await engine.achat(request.messages, pruning, generation, tools=request.tools))
        seat = current_seat()
        # A call outside of a batch sits at a table of its own.
        table = seat.table if seat is not None and seat.take() else Table(1)
        future = table.ask(request, answer_requests)
        try:
            return _result(await asyncio.wrap_future(future))
        except asyncio.CancelledError:
            table.cancel_one()
            raise

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        request = self._request(messages, stop, kwargs)
        if (seat := current_seat()) is not None:
            seat.leave()
        settings, tools, asked = request
        # Nothing runs once nobody reads on: the engine writes a token when it is asked for one, and a server is told.
        for piece in settings.engine.stream(asked, settings.pruning, settings.generation, tools=tools):
            yield _chunk(piece)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        if self.base_url is None:
            async for chunk in super()._astream(messages, stop, run_manager, **kwargs):
                yield chunk
            return
        request = await run_in_executor(None, self._request, messages, stop, kwargs)
        engine, pruning, generation = cast("RemoteSettings", request.settings)
        async with aclosing(engine.astream(request.messages, pruning, generation, tools=request.tools)) as pieces:
            async for piece in pieces:
                yield _chunk(piece)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer several inputs together, ``max_concurrency`` (of the config, else 8; a server 64) at a time."""
        if self.base_url is not None:
            bounded = in_flight(config, len(inputs))
            return super().batch(inputs, bounded, return_exceptions=return_exceptions, **kwargs)
        return batch_together(partial(self.invoke, **kwargs), inputs, config, return_exceptions)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """As :meth:`batch`."""
        if self.base_url is not None:
            bounded = in_flight(config, len(inputs))
            return await super().abatch(inputs, bounded, return_exceptions=return_exceptions, **kwargs)
        return await abatch_together(partial(self.ainvoke, **kwargs), inputs, config, return_exceptions)

    def bind_tools(
        self,
        tools: Sequence[tool_options.ToolLike],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Give the model tools.

        Args:
            tools: Tools, functions, Pydantic classes, TypedDicts or schemas; none with a ``response_format`` alone.
            tool_choice: None or "auto" leaves it to the model; "none" forbids calls; "any", "required" or True
                demands at least one; a name, or a mapping with one, demands one call of that tool. A grammar makes
                sure of it.
            parallel_tool_calls: False allows one call at a time.
            **kwargs: Options for the call, such as ``response_format`` or ``keep``.

        Raises:
            InvalidInput: If the choice is none of these or names none of the tools, or if no arguments satisfy a
                tool's parameters.
        """
        converted = tool_options.openai_tools(tools)
        tool_options.check_parameters(converted)
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_options.read_choice(tool_choice, converted)
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(tools=converted, **kwargs)

    def with_structured_output(
        self,
        schema: Schema | None = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """A model whose answers are objects of a schema: the grammar lets it write nothing else.

        Args:
            schema: A Pydantic class, TypedDict, JSON Schema with a title, or OpenAI function.
            method: "json_schema" (an answer by the schema), "function_calling" (a forced tool call) or "json_mode"
                (any JSON object, whose keys the prompt has to ask for).
            include_raw: Return ``{"raw": message, "parsed": object, "parsing_error": error}`` and raise nothing when
                an answer was cut off.
            strict: Without effect; answers always follow the schema.
            **kwargs: Options for the calls, such as ``max_tokens``.
        """
        return structured_output(self, schema, method, include_raw, kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of a text, of the model's own tokenizer."""
        return self._settings({}, {}).engine.tokenize(text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[tool_options.ToolLike] | None = None
    ) -> int:
        """Tokens of a prompt, those of the chat template and of pictures included: before pruning, but with
        ``base_url`` after the server's."""
        known = Tools(tool_options.openai_tools(tools)) if tools else None
        conversation = engine_messages(messages, partial(fetch, allowed_hosts=self.allowed_image_hosts))
        return self._settings({}, {}).engine.count_tokens(conversation, known)


def answer_requests(requests: Sequence[Request], cancel: threading.Event | None = None) -> Sequence[AnyAnswer]:
    """Answer requests with equal settings together."""
    settings, tools, _ = requests[0]
    conversations = [request.messages for request in requests]
    return settings.engine.batch(conversations, settings.pruning, settings.generation, cancel, tools)


def _result(answer: AnyAnswer) -> ChatResult:
    if answer.finish_reason == "cancelled":
        # As a message it would look whole, and be cached.
        raise TopsError("The answer was given up, as another input of its batch failed.")
    return ChatResult(generations=[ChatGeneration(message=as_message(answer))])


def _chunk(piece: str | AnyAnswer) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=piece) if isinstance(piece, str) else last_chunk(piece))


def _settings_in(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in common_names(options).items() if name in SETTING_NAMES}
