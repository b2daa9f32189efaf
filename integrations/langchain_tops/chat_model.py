"""The chat model."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import run_in_executor
from pydantic import ConfigDict, Field, SecretStr, model_validator

from langchain_tops import tools as tool_options
from langchain_tops.backends import Backend, LocalBackend, Setup
from langchain_tops.batching import leave_seat
from langchain_tops.content import check_blocks, engine_messages
from langchain_tops.fetching import fetch
from langchain_tops.results import Chunks, as_message
from langchain_tops.server import ServerBackend, check_options_of_a_server
from langchain_tops.settings import (
    SettingFields,
    common_names,
    override,
    read_settings,
    refuse_unknown,
    setting_names,
)
from langchain_tops.structured import Method, Schema, structured_output
from tops_engine import __version__
from tops_engine.answers.base import BaseAnswer
from tops_engine.contract import ChatEngine, Request
from tops_engine.conversation.tools import Tools
from tops_engine.errors import InvalidInput, TopsError

# Keywords of calls that are no options of the engine.
OF_LANGCHAIN = frozenset(["stream", "strict", "timeout", "max_retries"])


class Call(NamedTuple):
    """One call: the backend, the engine that it asks, and the request."""

    backend: Backend[Any]
    engine: ChatEngine[BaseAnswer]
    request: Request


class ChatTOPSLlava(SettingFields):
    """A vision-language model that prunes visual tokens, on this machine or behind a server.

    Every option of the engine is a field: which model (``model``, ``device``, ``dtype`` ...), which visual tokens to
    keep (``method``, ``keep``, ``schedule`` and the options of the methods), how to write (``max_tokens``,
    ``temperature``, ``stop`` ...). Each option can be given for one call (``invoke(..., keep=0.1)``), by ``bind`` and
    as a configurable field. The weights load at the first question; all models with the same spec share them.

    With ``base_url`` the model runs behind an OpenAI-compatible server, such as ``tops serve`` starts. Options of the
    model and of the pruning are then unset (None), and the server decides: it uses its only model and its own pruning.
    ``keep`` can ask for fewer tokens. With ``encode`` as well, the pictures are pruned before the server gets them.

    Example:
        .. code-block:: python

            from langchain_tops import ChatTOPSLlava, image_block

            model = ChatTOPSLlava(model="llava-hf/llava-1.5-7b-hf", keep=0.222)
            answer = model.invoke([("user", [image_block("photo.jpg"), {"type": "text", "text": "What is this?"}])])
            answer.usage_metadata["input_token_details"]  # visual tokens before and after pruning

    Raises:
        pydantic.ValidationError: If an option does not exist or has a value that is not allowed; a ``ValueError``.
        tops_engine.errors.TopsError: If a question fails; ``InvalidInput`` and its subclasses are also ``ValueError``.
    """

    # Options of methods that are defined later are extra values; the validator below refuses unknown options.
    # Pydantic's errors do not show the input, which may hold the key.
    model_config = ConfigDict(extra="allow", populate_by_name=True, protected_namespaces=(), hide_input_in_errors=True)

    allowed_image_hosts: tuple[str, ...] = Field(
        default=(),
        description="Hosts from which http(s) pictures may be fetched: names, *.example.org, or * for any public host. "
        "None by default; private addresses are always refused.",
    )
    streaming: bool = Field(default=False, description="Stream also when invoke is called.")
    base_url: str | None = Field(
        default=None,
        description="Address of an OpenAI-compatible server that runs the model, such as http://host:8000/v1. Unset, "
        "the model runs on this machine.",
    )
    encode: str | None = Field(
        default=None,
        description="With base_url: where pictures are encoded and pruned before they are sent. `here` runs the "
        "vision tower of the server's checkpoint on this machine, with the options of the model (device, dtype ...); "
        "an address, or several separated by commas, asks encoders of `tops encode-server`. The server must be vLLM "
        "with --enable-mm-embeds. Unset, the server gets the pictures.",
    )
    timeout: float | None = Field(
        default=None,
        exclude=True,
        description="With base_url: seconds to wait without any data from the server, for each attempt (600). "
        "Otherwise without effect.",
    )
    max_retries: int | None = Field(
        default=None,
        exclude=True,
        description="With base_url: how often to repeat a request if there is no connection, or if the server is busy "
        "or fails (2). Otherwise without effect.",
    )
    api_key: SecretStr | None = Field(
        default=None, exclude=True, description="With base_url: the key of the server. Otherwise without effect."
    )

    @model_validator(mode="before")
    @classmethod
    def _checked_by_the_settings(cls, values: Any) -> Any:
        """Convert options to the form of the settings, with the errors of the settings."""
        if not isinstance(values, dict):
            return values
        options = {name: value for name, value in common_names(values).items() if value is not None}
        fields = {field.alias or name for name, field in cls.model_fields.items()}
        refuse_unknown(options, fields | setting_names())
        if "base_url" in options:
            options = check_options_of_a_server(options)
        elif "encode" in options:
            raise InvalidInput("encode is for a model behind a server; give its base_url, or leave encode out.")
        for group in read_settings(options):
            for name in group.model_fields_set & type(group).model_fields.keys():
                options[name] = getattr(group, name)
        return options

    @model_validator(mode="after")
    def _leave_the_rest_to_the_server(self) -> "ChatTOPSLlava":
        names = {(field.alias or name): name for name, field in type(self).model_fields.items()}
        options = names.keys() & setting_names()
        given = {name for name in options if names[name] in self.model_fields_set}
        self.__dict__.update({names[name]: None for name in self._backend().fields_left_open(options, given)})
        return self

    @model_validator(mode="after")
    def _note_version_of_tops(self) -> "ChatTOPSLlava":
        self._add_version("tops-engine", __version__)
        return self

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return True: ``langchain_core.load.dumps`` writes the model and ``loads`` reads it, without its weights."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Return the package, whose name is public; the names of its modules may change."""
        return ["langchain_tops"]

    @property
    def lc_secrets(self) -> dict[str, str]:
        """The key is never written; ``loads`` takes it from its ``secrets_map``, or the environment if allowed to."""
        return {"api_key": "TOPS_API_KEY"}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What LangChain does not write by itself: values that are not JSON, options of plugins, limits of a server."""
        pruning = read_settings(self._options()).pruning.model_dump(mode="json", exclude_unset=True)
        limits = {"timeout": self.timeout, "max_retries": self.max_retries}
        return pruning | {name: value for name, value in limits.items() if value is not None}

    @property
    def _llm_type(self) -> str:
        return "tops"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """Every option that changes an answer; caches distinguish models by it."""
        return self._backend().identify(self._options())

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """Return the key of caches: every option that changes an answer, as it runs.

        LangChain takes what ``dumps`` writes, where the limits of a server count and defaults of methods do not.
        """
        return str(sorted((self._get_invocation_params(stop=stop, **kwargs) | kwargs).items()))

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        changes = common_names(_settings_in(kwargs)) | ({} if stop is None else {"stop": stop})
        generation = read_settings(self._options(changes)).generation
        params["ls_provider"] = "tops"
        params["ls_temperature"] = generation.temperature
        params["ls_max_tokens"] = generation.max_tokens
        if generation.stop:
            params["ls_stop"] = list(generation.stop)
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        is_given = "model" in self.model_fields_set
        return self._backend().profile(self.model, is_given, image_urls=bool(self.allowed_image_hosts))

    def _options(self, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return all options under the engine's names, with the ``changes`` of one call."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        values, names = common_names(fields | (self.model_extra or {})), setting_names()
        given = {name: value for name, value in values.items() if name in names and value is not None}
        return override(given, changes or {})

    def _backend(self, options: Mapping[str, Any] | None = None) -> Backend[Any]:
        """Return where the model runs; the ``options`` of a call may have other limits for a server."""
        if self.base_url is None:
            return LocalBackend()
        timeout, max_retries = ((options or {}).get(name, getattr(self, name)) for name in ("timeout", "max_retries"))
        key = None if self.api_key is None else self.api_key.get_secret_value()
        return ServerBackend(self.base_url, key, timeout, max_retries, self.encode)

    def _read(self, messages: Sequence[BaseMessage], stop: str | Sequence[str] | None, options: dict[str, Any]) -> Call:
        """Return what a call asks, and whom.

        Raises:
            InvalidInput: If a message, a tool or an option cannot be used.
        """
        changes = {name: value for name, value in options.items() if name not in OF_LANGCHAIN}
        tools = tool_options.read_tools(changes)
        changes = common_names(tool_options.read_format(changes))
        if stop is not None:
            changes["stop"] = stop
        refuse_unknown(changes, setting_names())
        backend = self._backend(options)
        engine, pruning, generation = backend.read(self._options(changes))
        conversation = self._conversation(messages)
        if tool_options.is_schema_format(options.get("response_format")):
            conversation = tool_options.with_schema_told(conversation, generation.json_schema)
        return Call(backend, engine, Request(conversation, pruning, generation, tools))

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        prompt = super()._convert_input(model_input)
        check_blocks(prompt.to_messages())
        return prompt

    def _conversation(self, messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
        return engine_messages(messages, partial(fetch, allowed_hosts=self.allowed_image_hosts))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        backend, engine, request = self._read(messages, stop, kwargs)
        return _result(backend.answer(engine, request))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        backend, engine, request = await run_in_executor(None, self._read, messages, stop, kwargs)
        return _result(await backend.aanswer(engine, request))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        _, engine, request = self._read(messages, stop, kwargs)
        leave_seat()
        chunks = Chunks()
        # An engine on this machine writes a token when it is asked for one, and a server stops when this is closed.
        for piece in engine.run_stream(request):
            yield ChatGenerationChunk(message=chunks.chunk(piece))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        backend, engine, request = await run_in_executor(None, self._read, messages, stop, kwargs)
        leave_seat()
        chunks = Chunks()
        async with aclosing(backend.astream(engine, request)) as pieces:
            async for piece in pieces:
                yield ChatGenerationChunk(message=chunks.chunk(piece))

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer several inputs together.

        ``max_concurrency`` of the config bounds how many are answered at a time: 8 by default, 64 by a server.
        """
        return self._backend().batch(self, inputs, config, return_exceptions, kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer several inputs together, as :meth:`batch`."""
        return await self._backend().abatch(self, inputs, config, return_exceptions, kwargs)

    def bind_tools(
        self,
        tools: Sequence[tool_options.ToolLike],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return a model that can call tools.

        Args:
            tools: Tools, functions, Pydantic classes, TypedDicts or schemas; may be empty with a ``response_format``.
            tool_choice: None or "auto" lets the model decide; "none" forbids calls; "any", "required" or True demands
                at least one call; a name, or a mapping with a name, demands one call of that tool. A grammar enforces
                the choice.
            parallel_tool_calls: False allows one call at a time.
            strict: True refuses parameters with keywords that a grammar cannot follow, such as ``uniqueItems``.
                Otherwise these keywords are left to the tool. The grammar follows all others in any case.
            **kwargs: Options for the call, such as ``response_format`` or ``keep``.

        Raises:
            InvalidInput: If the choice is none of these or names no tool, if no arguments satisfy the parameters of
                a tool, or if a tool runs at a provider, such as OpenAI's web search.
        """
        converted = tool_options.as_strict(tool_options.openai_tools(tools), strict)
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
        """Return a model whose answers are objects of a schema, which a grammar enforces.

        Args:
            schema: A Pydantic class, TypedDict, JSON Schema, or OpenAI's or Anthropic's wrapper of one.
            method: "json_schema" (an answer that follows the schema), "function_calling" (a forced tool call) or
                "json_mode" (any JSON object; the prompt has to ask for its keys).
            include_raw: Return ``{"raw": message, "parsed": object, "parsing_error": error}`` and raise no error if
                an answer is cut off.
            strict: Without effect; answers always follow the schema.
            **kwargs: Options for the calls, such as ``max_tokens``.
        """
        return structured_output(self, schema, method, include_raw, kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """Return the tokens of a text, by the tokenizer of the model."""
        return self._backend().read(self._options()).engine.tokenize(text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[tool_options.ToolLike] | None = None
    ) -> int:
        """Return the number of tokens of a prompt, with its chat template and pictures.

        The pictures count before pruning; with ``base_url``, after the pruning of the server.
        """
        known = Tools(tool_options.openai_tools(tools)) if tools else None
        return self._backend().read(self._options()).engine.count_tokens(self._conversation(messages), known)

    def setup(self, options: Mapping[str, Any]) -> Setup[Any]:
        """Return the engine, the pruning and the options of writing of a call with these options.

        The pruning is None if a server decides. Options that are none of the engine's are ignored.

        Raises:
            InvalidInput: If an option is not allowed.
        """
        return self._backend(options).read(self._options(_settings_in(options)))

    def get_num_visual_tokens(self, width: int, height: int) -> int:
        """Return the number of visual tokens of a picture of that many pixels, alone in a prompt.

        Counted before pruning; with ``base_url``, after the pruning of the server.
        """
        return self._backend().read(self._options()).engine.count_visual_tokens(width, height)


def _result(answer: BaseAnswer) -> ChatResult:
    if answer.finish_reason == "cancelled":
        # A message would look complete and be cached.
        raise TopsError("The answer was not completed, because another input of its batch failed.")
    return ChatResult(generations=[ChatGeneration(message=as_message(answer))])


def _settings_in(options: Mapping[str, Any]) -> dict[str, Any]:
    names = setting_names()
    return {name: value for name, value in common_names(options).items() if name in names}
