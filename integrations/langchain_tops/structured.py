"""Structured output: a schema becomes what the model is bound to, and a parser that accepts whole answers only."""

from collections.abc import Mapping
from typing import Any, Literal

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableLambda, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import TBaseModel, is_basemodel_subclass
from pydantic import BaseModel

from tops_engine.errors import InvalidInput, quote, reason_of
from tops_engine.generation.grammars import check_grammar, json_grammar
from tops_engine.settings.json_schema import read_schema

Schema = dict[str, Any] | type
Method = Literal["json_schema", "function_calling", "json_mode"]


class _WholeAnswers:
    """A parser that refuses answers that were cut off; LangChain's parsers would complete them without a warning."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        generation = result[0]
        metadata = generation.message.response_metadata if isinstance(generation, ChatGeneration) else {}
        if metadata.get("finish_reason") in ("length", "cancelled"):
            written = metadata.get("usage", {}).get("completion_tokens", "all its")
            raise OutputParserException(
                f"The answer was cut off after {written} tokens, before it was "
                "complete; raise max_tokens, or bound the texts and lists of the schema.",
                llm_output=generation.text,
            )
        return super().parse_result(result, partial=partial)  # type: ignore[misc]


class _Json(_WholeAnswers, JsonOutputParser):
    pass


class _Pydantic(_WholeAnswers, PydanticOutputParser[TBaseModel]):
    pass


class _ToolArguments(_WholeAnswers, JsonOutputKeyToolsParser):
    pass


class _ToolObjects(_WholeAnswers, PydanticToolsParser):
    pass


def json_schema_of(schema: Schema) -> dict[str, Any]:
    """Return the JSON Schema of a class or mapping, with a title.

    Raises:
        InvalidInput: If it is not a schema, or not written as one.
    """
    try:
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            read = schema.model_json_schema()
        else:
            read = read_schema(schema if isinstance(schema, Mapping) else convert_to_json_schema(schema))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"The schema cannot be used: {reason_of(error)}.") from error
    return {"title": "answer"} | read


def structured_output(
    model: Any, schema: Schema | None, method: Method, include_raw: bool, options: dict[str, Any]
) -> Runnable[Any, Any]:
    """Return a model whose answers are objects of a schema.

    Args:
        model: The chat model.
        schema: A Pydantic class, TypedDict, JSON Schema, or OpenAI's or Anthropic's wrapper of one; json_mode needs
            none.
        method: How the answer is given: by the schema, by a forced tool call, or as any JSON object.
        include_raw: Return the message and the parsing error, too.
        options: Options for each call, such as ``max_tokens``.

    Raises:
        InvalidInput: If the method or the schema cannot be used.
    """
    if method not in ("json_schema", "function_calling", "json_mode"):
        raise InvalidInput(f"The method {quote(method)} is not one of json_schema, function_calling, json_mode.")
    if schema is None and method != "json_mode":
        raise InvalidInput(f"with_structured_output needs a schema for the method {quote(method)}.")
    read = None if schema is None else json_schema_of(schema)
    is_pydantic = isinstance(schema, type) and is_basemodel_subclass(schema)
    shown = _as_function(read) if read and isinstance(schema, Mapping) else schema and convert_to_json_schema(schema)
    described = {"kwargs": {"method": method}, "schema": shown}
    if method == "function_calling":
        assert schema is not None
        assert read is not None
        tool = _function(schema, read)
        name = tool["function"]["name"]
        bound = model.bind_tools([tool], tool_choice=name, ls_structured_output_format=described, **options)
        parser: BaseOutputParser[Any] = (
            _ToolObjects(tools=[schema], first_tool_only=True)
            if is_pydantic
            else _ToolArguments(key_name=name, first_tool_only=True)
        )
    else:
        bound = model.bind(response_format=_format(read, method), ls_structured_output_format=described, **options)
        parser = _Pydantic(pydantic_object=schema) if is_pydantic else _Json()
    return _with_raw(bound, parser) if include_raw else bound | parser


def _function(schema: Schema, read: dict[str, Any]) -> dict[str, Any]:
    """Return the tool whose arguments are the answer."""
    if not isinstance(schema, Mapping):
        return convert_to_openai_tool(schema)
    kind = read.get("type", "object")
    if "object" not in (kind if isinstance(kind, list) else [kind]):
        raise InvalidInput(
            f'A function takes an object, but the schema has the type {quote(kind)}; use method="json_schema".'
        )
    return {"type": "function", "function": _as_function(read | {"type": "object"})}


def _as_function(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON Schema in the form of OpenAI's functions, which LangChain reads whatever the type of the schema."""
    parameters = {key: value for key, value in schema.items() if key not in ("title", "description")}
    return {"name": schema["title"], "description": schema.get("description", ""), "parameters": parameters}


def _format(schema: dict[str, Any] | None, method: Method) -> dict[str, Any]:
    if method == "json_mode" or schema is None:
        return {"type": "json_object"}
    # Better now than at the first question.
    check_grammar(json_grammar(schema))
    return {"type": "json_schema", "json_schema": {"name": schema["title"], "schema": schema}}


def _with_raw(
    model: Runnable[LanguageModelInput, Any], parser: BaseOutputParser[Any]
) -> Runnable[LanguageModelInput, dict[str, Any]]:
    def failed(values: dict[str, Any]) -> dict[str, Any]:
        return {"raw": values["raw"], "parsed": None, "parsing_error": values["error"]}

    parsed = RunnablePassthrough.assign(
        parsed=(lambda values: values["raw"]) | parser, parsing_error=RunnableLambda(lambda _: None)
    )
    return RunnableMap(raw=model) | parsed.with_fallbacks([RunnableLambda(failed)], exception_key="error")
