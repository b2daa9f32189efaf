"""The chat model."""

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list, get_executor_for_config, run_in_executor
from pydantic import ConfigDict, Field, SecretStr, model_validator

from langchain_tops import tools as tool_options
from langchain_tops.batching import Request, Table, current_seat
from langchain_tops.content import engine_messages
from langchain_tops.profile import model_profile
from langchain_tops.remote import fetch
from langchain_tops.results import as_message, last_chunk
from langchain_tops.settings import (
    SETTING_NAMES,
    SettingFields,
    common_names,
    override,
    read_settings,
    refuse_unknown,
)
from langchain_tops.structured import Method, Schema, structured_output
from tops_engine import __version__
from tops_engine.engine import shared_engine
from tops_engine.errors import TopsError
from tops_engine.report import Answer
from tops_engine.tools import Tools

# Calls that go to the engine together when the caller sets no max_concurrency.
BATCH_SIZE = 8

# Keywords of calls that are LangChain's business.
OF_LANGCHAIN = frozenset(["stream", "strict", "timeout", "max_retries"])


class ChatTOPSLlava(SettingFields):
    """A local vision-language model that keeps only the visual tokens that matter.

    Every option of the engine is a field: which model (``model``, ``device``, ``dtype`` ...), what to keep
    (``method``, ``keep``, ``schedule`` and the options of the methods), how to write (``max_tokens``,
    ``temperature``, ``stop`` ...). Each can be given for one call, ``invoke(..., keep=0.1)``, by ``bind`` and as a
    configurable field. The weights are loaded at the first question and shared by all models with the same spec.

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

    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=())

    allowed_image_hosts: tuple[str, ...] = Field(
        default=(),
        description="Hosts http(s) pictures may come from: names, *.example.org, or * for any public host. None by "
        "default; private addresses are always refused.",
    )
    streaming: bool = Field(default=False, description="Stream also where invoke is called.")
    timeout: float | None = Field(default=None, exclude=True, description="Without effect: nothing here is remote.")
    max_retries: int | None = Field(default=None, exclude=True, description="Without effect, as timeout.")
    api_key: SecretStr | None = Field(default=None, exclude=True, description="Without effect, as timeout.")

    @model_validator(mode="before")
    @classmethod
    def _checked_by_the_settings(cls, values: Any) -> Any:
        """Bring options into the form the settings give them, with the settings' own errors."""
        if not isinstance(values, dict):
            return values
        options = common_names(values)
        fields = {field.alias or name for name, field in cls.model_fields.items()}
        refuse_unknown(options, fields)
        settings = read_settings(options)
        for group in settings:
            for name in options.keys() & type(group).model_fields.keys():
                if options[name] is not None:
                    options[name] = getattr(group, name)
        return options

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
        settings = read_settings(self._options())
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
        return model_profile(self.model, image_urls=bool(self.allowed_image_hosts))

    def _options(self, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All options under the engine's names, those of one call included."""
        values = common_names({name: getattr(self, name) for name in type(self).model_fields})
        given = {name: value for name, value in values.items() if name in SETTING_NAMES and value is not None}
        return override(given, changes or {})

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
        settings = read_settings(self._options(changes))
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
        if seat is not None and seat.take():
            return _result(seat.table.ask(request, answer_requests).result())
        return _result(answer_requests([request], threading.Event())[0])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = await run_in_executor(None, self._request, messages, stop, kwargs)
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
        settings = request.settings
        engine = shared_engine(settings.spec)
        # The engine writes a token when it is asked for one: nothing runs once nobody reads on.
        for piece in engine.stream(request.messages, settings.pruning, settings.generation, tools=request.tools):
            message = last_chunk(piece) if isinstance(piece, Answer) else AIMessageChunk(content=piece)
            yield ChatGenerationChunk(message=message)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer several inputs together on the engine, ``max_concurrency`` (of the config, else 8) at a time."""

        def call(table: Table, value: LanguageModelInput, config: RunnableConfig) -> AIMessage:
            with table.seat():
                try:
                    return self.invoke(value, config, **kwargs)
                except Exception as error:
                    if return_exceptions:
                        return cast("AIMessage", error)
                    raise

        answers: list[AIMessage] = []
        for part, configs in _parts(inputs, config):
            table = Table(len(part))
            limits = RunnableConfig(max_concurrency=len(part))
            with get_executor_for_config(limits) as executor, table.abandoned_on_error():
                answers += executor.map(partial(call, table), part, configs)
        return answers

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """As :meth:`batch`."""

        async def call(table: Table, value: LanguageModelInput, config: RunnableConfig) -> AIMessage:
            with table.seat():
                try:
                    return await self.ainvoke(value, config, **kwargs)
                except Exception as error:
                    if return_exceptions:
                        return cast("AIMessage", error)
                    raise

        answers: list[AIMessage] = []
        for part, configs in _parts(inputs, config):
            table = Table(len(part))
            with table.abandoned_on_error():
                answers += await asyncio.gather(*map(partial(call, table), part, configs))
        return answers

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
        engine = shared_engine(read_settings(self._options()).spec)
        return list(engine.family.tokenizer.encode(text, add_special_tokens=False))

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[tool_options.ToolLike] | None = None
    ) -> int:
        """Tokens of a prompt, those of pictures before pruning and of the chat template included."""
        engine = shared_engine(read_settings(self._options()).spec)
        known = Tools(tool_options.openai_tools(tools)) if tools else None
        conversation = engine_messages(messages, partial(fetch, allowed_hosts=self.allowed_image_hosts))
        return engine.count_tokens(conversation, known)


def answer_requests(requests: Sequence[Request], cancel: threading.Event) -> list[Answer]:
    """Answer requests with equal settings together."""
    settings, tools, _ = requests[0]
    conversations = [request.messages for request in requests]
    return shared_engine(settings.spec).batch(conversations, settings.pruning, settings.generation, cancel, tools)


def _result(answer: Answer) -> ChatResult:
    if answer.finish_reason == "cancelled":
        # As a message it would look whole, and be cached.
        raise TopsError("The answer was given up, as another input of its batch failed.")
    return ChatResult(generations=[ChatGeneration(message=as_message(answer))])


def _settings_in(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in common_names(options).items() if name in SETTING_NAMES}


def _parts(
    inputs: Sequence[LanguageModelInput], config: RunnableConfig | Sequence[RunnableConfig] | None
) -> Iterator[tuple[Sequence[LanguageModelInput], list[RunnableConfig]]]:
    """Inputs that go to the engine together, with their configs."""
    if not inputs:
        return
    configs = get_config_list(config, len(inputs))
    size = configs[0].get("max_concurrency") or BATCH_SIZE
    for start in range(0, len(inputs), size):
        yield inputs[start : start + size], configs[start : start + size]
