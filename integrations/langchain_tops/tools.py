"""Tools and answer formats as LangChain gives them, in the engine's form."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from tops_engine.conversation.tools import Tools, with_system_text
from tops_engine.errors import InvalidInput
from tops_engine.generation.constraint import check_grammar
from tops_engine.generation.tool_calls import arguments_rule

ToolLike = dict[str, Any] | type | Callable[..., Any] | BaseTool


def openai_tools(tools: Sequence[ToolLike]) -> list[dict[str, Any]]:
    """Any kind of tool as ``{"type": "function", "function": {"name", "description", "parameters"}}``."""
    return [convert_to_openai_tool(tool) for tool in tools]


def check_parameters(tools: Sequence[Mapping[str, Any]]) -> None:
    """Check that there are arguments for each tool, when it is bound and not at the first question.

    Raises:
        InvalidInput: If no arguments satisfy a tool's parameters.
    """
    for function in (tool["function"] for tool in tools):
        try:
            check_grammar(f"start: {arguments_rule(function)}")
        except InvalidInput as error:
            raise InvalidInput(f"The parameters of the tool {function['name']!r} are unusable: {error}") from error


def read_choice(choice: Any, tools: Sequence[Mapping[str, Any]]) -> str:
    """A tool choice in the engine's words.

    Args:
        choice: None or "auto", "none" or False, "any", "required" or True, a function's name, or a mapping in the
            style of OpenAI (``{"type": "function", "function": {"name": ...}}``) or Anthropic.
        tools: What there is to choose from, in OpenAI's form.

    Raises:
        InvalidInput: If it is none of these.
    """
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
        choice = name or choice.get("type")
    words: dict[Any, str] = {None: "auto", False: "none", True: "required", "any": "required"}
    if not isinstance(choice, str | bool | None):
        raise InvalidInput(f"The tool choice {choice!r} is not a word, a name or a mapping with a name.")
    names = {tool["function"]["name"] for tool in tools}
    wanted = str(choice) if choice in names else words.get(choice, str(choice))
    return Tools([tool for tool in tools if tool["function"]["name"] == wanted][:1] or tools[:1], wanted).choice


def read_tools(options: dict[str, Any]) -> Tools | None:
    """Take what a call says about tools out of its options; None where there are none."""
    tools = options.pop("tools", None)
    choice = options.pop("tool_choice", None)
    parallel = options.pop("parallel_tool_calls", None)
    if not tools:
        read_choice(choice, [])
        return None
    tools = openai_tools(tools)
    return Tools(tools, read_choice(choice, tools), parallel is not False)


def read_format(options: dict[str, Any]) -> dict[str, Any]:
    """Replace OpenAI's ``response_format`` by the schema it stands for.

    Raises:
        InvalidInput: If it is no such format.
    """
    wanted = options.pop("response_format", None)
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if wanted is None or kind == "text":
        return options
    if kind == "json_object":
        return options | {"json_schema": {"type": "object"}}
    if kind == "json_schema" and isinstance(wanted.get("json_schema"), Mapping):
        return options | {"json_schema": wanted["json_schema"].get("schema", {})}
    raise InvalidInput(
        f"The response format {wanted!r} is not one of text, json_object or "
        '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}.'
    )


def with_schema_told(messages: Sequence[dict[str, Any]], response_format: Any) -> list[dict[str, Any]]:
    """Messages whose system text holds the schema of the answer: the grammar alone says nothing of descriptions."""
    if not isinstance(response_format, Mapping) or not isinstance(response_format.get("json_schema"), Mapping):
        return list(messages)
    schema = json.dumps(response_format["json_schema"].get("schema"), ensure_ascii=False)
    return with_system_text(messages, f"Answer with JSON that satisfies this JSON Schema:\n{schema}")
