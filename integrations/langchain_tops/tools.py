"""Tools and answer formats as LangChain gives them, in the engine's form."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool

from tops_engine.conversation.tools import Tools, with_system_text
from tops_engine.errors import InvalidInput, quote
from tops_engine.generation import tool_calls

# The types of values in JSON Schema.
JSON_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")

ToolLike = dict[str, Any] | type | Callable[..., Any] | BaseTool


def openai_tools(tools: Sequence[ToolLike]) -> list[dict[str, Any]]:
    """Return tools of any kind as ``{"type": "function", "function": {"name", "description", "parameters"}}``.

    Raises:
        InvalidInput: If they are no list, or a tool is not a function, such as the tools that run at a provider.
    """
    if not isinstance(tools, Iterable) or isinstance(tools, str | Mapping):
        raise InvalidInput(f"Tools are given as a list, not as {quote(tools)}.")
    return [_openai_tool(tool) for tool in tools]


def _openai_tool(tool: ToolLike) -> dict[str, Any]:
    if isinstance(tool, Mapping) and tool.get("type") == "function":
        # The Responses API writes the name beside the type.
        tool = dict(tool["function"] if isinstance(tool.get("function"), Mapping) else tool)
        tool.pop("type", None)
    if isinstance(tool, Mapping) and isinstance(tool.get("schema"), Mapping):
        tool = {"parameters": tool["schema"], **{name: tool[name] for name in ("name", "description") if name in tool}}
    kind = _kind_at_provider(tool)
    if kind is not None:
        raise InvalidInput(
            f"The tool {quote(kind)} runs at its provider, and models here call only functions; bind a function "
            "that does the same."
        )
    try:
        converted = convert_to_openai_tool(tool)
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"The tool {quote(tool)} is not a function, a class, or a mapping with a name and parameters."
        ) from error
    if "function" not in converted:
        raise InvalidInput(f"The tool {quote(tool)} is of the type {quote(converted.get('type'))}, not a function.")
    Tools([converted])  # checks the name and the parameters
    return converted


def _kind_at_provider(tool: ToolLike) -> str | None:
    """Return what a provider calls a tool that runs there, None for other tools."""
    if not isinstance(tool, Mapping) or tool.keys() & {"parameters", "input_schema", "toolSpec", "title", "properties"}:
        return None
    if isinstance(tool.get("type"), str):
        return tool["type"]
    # Google's: {"google_search": {}}.
    return str(next(iter(tool))) if len(tool) == 1 and "name" not in tool else None


def check_parameters(tools: Sequence[Mapping[str, Any]]) -> None:
    """Check that some arguments satisfy the parameters of each tool, when it is bound and not at the first question.

    Raises:
        InvalidInput: If no arguments satisfy a tool's parameters.
    """
    for function in (tool["function"] for tool in tools):
        tool_calls.check_parameters(function)


def read_choice(choice: Any, tools: Sequence[Mapping[str, Any]]) -> str:
    """Return a tool choice under the engine's names.

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
        raise InvalidInput(f"The tool choice {quote(choice)} is not a word, a name or a mapping with a name.")
    names = {tool["function"]["name"] for tool in tools}
    wanted = str(choice) if choice in names else words.get(choice, str(choice))
    return Tools([tool for tool in tools if tool["function"]["name"] == wanted][:1] or tools[:1], wanted).choice


def as_strict(tools: Sequence[dict[str, Any]], strict: bool | None) -> list[dict[str, Any]]:
    """Return tools that are strict or not; None leaves each as it is."""
    if not isinstance(strict, bool | None):
        raise InvalidInput(f"strict={quote(strict)} is not allowed; give True, False or None.")
    if strict is None:
        return list(tools)
    return [{**tool, "function": {**tool["function"], "strict": strict}} for tool in tools]


def read_tools(options: dict[str, Any]) -> Tools | None:
    """Remove the options about tools from the options of a call and return them; None if there are no tools."""
    tools = options.pop("tools", None)
    choice = options.pop("tool_choice", None)
    parallel = options.pop("parallel_tool_calls", None)
    if not tools:
        read_choice(choice, [])
        return None
    tools = openai_tools(tools)
    return Tools(tools, read_choice(choice, tools), parallel is not False)


def read_format(options: dict[str, Any]) -> dict[str, Any]:
    """Replace ``response_format`` by the schema that it stands for.

    Raises:
        InvalidInput: If it is not a format: a mapping of OpenAI's, a schema in any of the forms of ``json_schema``, or
            a class.
    """
    wanted = options.pop("response_format", None)
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if wanted is None or kind == "text":
        return options
    if kind == "json_object" and len(wanted) == 1:
        return options | {"json_schema": {"type": "object"}}
    if is_schema_format(wanted):
        return options | {"json_schema": wanted if isinstance(wanted, Mapping) else convert_to_json_schema(wanted)}
    raise InvalidInput(
        f"The response format {quote(wanted)} is not one of text, json_object or "
        '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}.'
    )


def is_schema_format(response_format: Any) -> bool:
    """Return whether a ``response_format`` demands a schema."""
    if isinstance(response_format, type):
        return True
    kind = response_format.get("type") if isinstance(response_format, Mapping) else "text"
    kinds = kind if isinstance(kind, list) else [kind]
    return all(one in (None, "json_schema", "function", *JSON_TYPES) for one in kinds)


def with_schema_told(messages: Sequence[dict[str, Any]], schema: str | None) -> list[dict[str, Any]]:
    """Return messages whose system text holds the schema of the answer.

    The grammar that enforces the schema does not tell the model about descriptions.
    """
    return with_system_text(messages, f"Answer with JSON that satisfies this JSON Schema:\n{schema}")
