"""Structured output: a schema becomes what the model is bound to, and a parser that accepts whole answers only."""

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

from tops_engine.errors import InvalidInput
from tops_engine.generation.constraint import check_grammar, json_grammar

Schema = dict[str, Any] | type
Method = Literal["json_schema", "function_calling", "json_mode"]


class _WholeAnswers:
    """Refuses answers that were cut off: LangChain's parsers would complete them in silence."""

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


def grammar_schema(schema: Schema) -> dict[str, Any]:
    """The JSON Schema answers are made by: what is one stays as it is, with all references and bounds."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_json_schema()
    if isinstance(schema, dict) and "title" in schema and not {"name", "function"} & schema.keys():
        return schema
    return convert_to_json_schema(schema)


def structured_output(
    model: Any, schema: Schema | None, method: Method, include_raw: bool, options: dict[str, Any]
) -> Runnable[Any, Any]:
    """A model whose answers are objects of a schema.

    Args:
        model: The chat model.
        schema: A Pydantic class, TypedDict, JSON Schema with a title, or OpenAI function; json_mode needs none.
        method: How: an answer by the schema, a forced tool call, or any JSON object.
        include_raw: Give the message and the parsing error, too.
        options: For each call, such as ``max_tokens``.
    """
    if method not in ("json_schema", "function_calling", "json_mode"):
        raise InvalidInput(f"The method {method!r} is not one of json_schema, function_calling, json_mode.")
    if schema is None and method != "json_mode":
        raise InvalidInput(f"with_structured_output needs a schema for the method {method!r}.")
    is_pydantic = isinstance(schema, type) and is_basemodel_subclass(schema)
    described = {"kwargs": {"method": method}, "schema": convert_to_json_schema(schema) if schema else None}
    if method == "function_calling":
        assert schema is not None
        tool = convert_to_openai_tool(schema)
        name = tool["function"]["name"]
        bound = model.bind_tools([tool], tool_choice=name, ls_structured_output_format=described, **options)
        parser: BaseOutputParser[Any] = (
            _ToolObjects(tools=[schema], first_tool_only=True)
            if is_pydantic
            else _ToolArguments(key_name=name, first_tool_only=True)
        )
    else:
        bound = model.bind(response_format=_format(schema, method), ls_structured_output_format=described, **options)
        parser = _Pydantic(pydantic_object=schema) if is_pydantic else _Json()
    return _with_raw(bound, parser) if include_raw else bound | parser


def _format(schema: Schema | None, method: Method) -> dict[str, Any]:
    if method == "json_mode" or schema is None:
        return {"type": "json_object"}
    read = grammar_schema(schema)
    # Better now than at the first question.
    check_grammar(json_grammar(read))
    return {"type": "json_schema", "json_schema": {"name": read.get("title", "answer"), "schema": read}}


def _with_raw(
    model: Runnable[LanguageModelInput, Any], parser: BaseOutputParser[Any]
) -> Runnable[LanguageModelInput, dict[str, Any]]:
    def failed(values: dict[str, Any]) -> dict[str, Any]:
        return {"raw": values["raw"], "parsed": None, "parsing_error": values["error"]}

    parsed = RunnablePassthrough.assign(
        parsed=(lambda values: values["raw"]) | parser, parsing_error=RunnableLambda(lambda _: None)
    )
    return RunnableMap(raw=model) | parsed.with_fallbacks([RunnableLambda(failed)], exception_key="error")
