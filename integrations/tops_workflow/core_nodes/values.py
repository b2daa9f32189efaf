"""Texts and numbers."""

import json
import sys
from typing import Any

from tops_engine.files import write_whole
from tops_workflow.core_nodes.files import next_file, shown_file


class PreviewAny:
    """Core id PreviewAny."""

    CATEGORY = "utils"
    DESCRIPTION = "Shows anything as text."
    SEARCH_ALIASES = ["show text", "display", "print"]
    RETURN_TYPES = ()
    FUNCTION = "main"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"source": ("*", {})}}

    def main(self, source: Any = None) -> dict[str, Any]:
        if isinstance(source, str):
            text = source
        elif isinstance(source, dict | list):
            try:
                text = json.dumps(source)
            except (TypeError, ValueError):
                text = str(source)
        else:
            text = str(source)
        return {"ui": {"text": [text]}}


class _Primitive:
    CATEGORY = "utils/primitive"
    RETURN_TYPES: tuple[str, ...] = ()
    OPTIONS: dict[str, Any] = {}
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": (cls.RETURN_TYPES[0], cls.OPTIONS)}}

    def execute(self, value: Any) -> tuple[Any]:
        return (value,)


class PrimitiveString(_Primitive):
    """Core id PrimitiveString."""

    DESCRIPTION = "A line of text."
    RETURN_TYPES = ("STRING",)


class PrimitiveStringMultiline(_Primitive):
    """Core id PrimitiveStringMultiline."""

    DESCRIPTION = "A text."
    RETURN_TYPES = ("STRING",)
    OPTIONS = {"multiline": True}


class PrimitiveInt(_Primitive):
    """Core id PrimitiveInt."""

    DESCRIPTION = "A whole number."
    RETURN_TYPES = ("INT",)
    OPTIONS = {"min": -sys.maxsize, "max": sys.maxsize, "control_after_generate": True}


class PrimitiveFloat(_Primitive):
    """Core id PrimitiveFloat."""

    DESCRIPTION = "A number."
    RETURN_TYPES = ("FLOAT",)
    OPTIONS = {"min": -sys.maxsize, "max": sys.maxsize}


class PrimitiveBoolean(_Primitive):
    """Core id PrimitiveBoolean."""

    DESCRIPTION = "True or false."
    RETURN_TYPES = ("BOOLEAN",)


class StringConcatenate:
    """Core id StringConcatenate."""

    CATEGORY = "utils/string"
    DESCRIPTION = "Joins two texts, with a delimiter between them."
    RETURN_TYPES = ("STRING",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        text = ("STRING", {"multiline": True})
        return {"required": {"string_a": text, "string_b": text, "delimiter": ("STRING", {"default": ""})}}

    def execute(self, string_a: str, string_b: str, delimiter: str) -> tuple[str]:
        return (delimiter.join((string_a, string_b)),)


class SaveText:
    """Core id SaveText, of newer versions of ComfyUI."""

    CATEGORY = "utils"
    DESCRIPTION = "Saves a text in the output folder."
    SEARCH_ALIASES = ["write text", "export text"]
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("text",)
    FUNCTION = "execute"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        prefix = {"default": "ComfyUI", "tooltip": "How the files' names begin; it may hold a subfolder."}
        return {
            "required": {
                "text": ("STRING", {"forceInput": True}),
                "filename_prefix": ("STRING", prefix),
                "format": (["txt", "md", "json"], {"default": "txt"}),
            }
        }

    def execute(self, text: str, filename_prefix: str, format: str) -> dict[str, Any]:
        place = next_file("output", filename_prefix, f".{format}")
        path = place.path(place.number)
        write_whole(path, (_indented(text) if format == "json" else text).encode())
        return {"ui": {"text": [text], "files": [shown_file(path, "output")]}, "result": (text,)}


def _indented(text: str) -> str:
    """Return JSON with line breaks, and any other text as it is."""
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        return text
