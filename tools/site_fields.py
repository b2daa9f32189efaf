"""Extension of griffe for the API reference: pydantic fields show their description, default and bounds."""

import ast
from typing import Any

import griffe

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class Fields(griffe.Extension):
    """Turn ``name: int = Field(default=1, ge=1, description="...")`` into a documented attribute."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Use the description as docstring and the default as value."""
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
