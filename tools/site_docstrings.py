"""Extension of griffe for the API reference: how the docstrings of this project are written.

- The text after the colon of a parameter or attribute, and below "Returns", is a description. Types come from
  annotations.
- References such as ``:class:`Method``` are shown as code.
- pydantic fields show their description, default and bounds.
"""

import ast
import re
from typing import Any

import griffe

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}

SECTION = re.compile(r"^(?P<title>Attributes|Parameters|Returns)\n-+\n(?P<body>.*?)(?=^\w[\w ]*\n-+\n|\Z)", re.M | re.S)
NAMED = re.compile(r"^(?P<names>\*{0,2}\w[\w, *]*?) : (?P<text>.*)$", re.M)
ROLE = re.compile(r":\w+:`~?([^`]+)`")


class Docstrings(griffe.Extension):
    """Bring docstrings in the form that griffe reads."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a class, function or module."""
        if obj.docstring is not None:
            returns = str(obj.returns) if isinstance(obj, griffe.Function) and obj.returns is not None else "object"
            obj.docstring.value = numpy_docstring(obj.docstring.value, returns)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Turn ``name: int = Field(default=1, ge=1, description="...")`` into a documented attribute."""
        call = attr.value
        if not isinstance(call, griffe.ExprCall) or call.canonical_path != "pydantic.Field":
            return
        arguments = {part.name: part.value for part in call.arguments if isinstance(part, griffe.ExprKeyword)}
        if "description" not in arguments:
            return
        text = str(ast.literal_eval(str(arguments["description"])))
        bounds = [f"{word} {arguments[name]}" for name, word in BOUNDS.items() if name in arguments]
        if bounds:
            text += f" Allowed: {', '.join(bounds)}."
        attr.docstring = griffe.Docstring(text, parent=attr)
        attr.value = arguments.get("default")


def numpy_docstring(text: str, returns: str) -> str:
    """Return a docstring with the descriptions of its sections where the numpy style has them.

    Parameters
    ----------
    text : docstring in the style of this project, without indentation.
    returns : what the function returns, as a type.
    """

    def section(match: re.Match[str]) -> str:
        title, body = match["title"], match["body"]
        if title == "Returns":
            body = f"{returns}\n" + re.sub(r"^(?=\S)", "    ", body, flags=re.M)
        else:
            body = NAMED.sub(lambda named: f"{named['names']}\n    {named['text']}", body)
        return f"{title}\n{'-' * len(title)}\n{body}"

    return SECTION.sub(section, ROLE.sub(r"`\1`", text))
