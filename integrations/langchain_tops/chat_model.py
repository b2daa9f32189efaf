"""The chat model."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import run_in_executor

from langchain_tops import tools as tool_options
from langchain_tops.backends import Backend, Setup
from langchain_tops.batching import leave_seat
from langchain_tops.content import check_blocks, engine_messages
from langchain_tops.fetching import fetch
from langchain_tops.fields import ChatFields
from langchain_tops.results import Chunks, chat_result
from langchain_tops.settings import common_names, read_settings, refuse_unknown, setting_names, settings_in
from langchain_tops.structured import Method, Schema, structured_output
from tops_engine.answers.base import BaseAnswer
from tops_engine.contract import ChatEngine, Request
from tops_engine.conversation.tools import Tools

# Keywords of calls that are no options of the engine.
OF_LANGCHAIN = frozenset(["stream", "strict", "timeout", "max_retries"])


class Call(NamedTuple):
    """One call: the backend, the engine that it asks, and the request."""

    backend: Backend[Any]
    engine: ChatEngine[BaseAnswer]
    request: Request


class ChatTOPSLlava(ChatFields):
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
        changes = common_names(settings_in(kwargs)) | ({} if stop is None else {"stop": stop})
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
        return chat_result(backend.answer(engine, request))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        backend, engine, request = await run_in_executor(None, self._read, messages, stop, kwargs)
        return chat_result(await backend.aanswer(engine, request))

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
        return self._backend(options).read(self._options(settings_in(options)))

    def get_num_visual_tokens(self, width: int, height: int) -> int:
        """Return the number of visual tokens of a picture of that many pixels, alone in a prompt.

        Counted before pruning; with ``base_url``, after the pruning of the server.
        """
        return self._backend().read(self._options()).engine.count_visual_tokens(width, height)
