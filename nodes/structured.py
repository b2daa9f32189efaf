"""TOPS Structured."""

import json
from typing import Any

from torch import Tensor

from tops_engine.contract import Request
from tops_engine.conversation.messages import user_message
from tops_engine.errors import InvalidInput, quote
from tops_engine.settings import Generation, Pruning
from tops_engine.settings.json_schema import has_field

from .asking import REASONING_TIP, THINKING, UNLOAD, ask_streaming, generation_widgets, map_of, seed_change
from .comfyui_host import refusal
from .models import NodeModel, freed_if
from .notes import notes
from .pictures import all_pictures, growing_pictures
from .sockets import MODEL, PRUNING, PRUNING_TIP, STATS, Stats, expect_model, pruning_for
from .widgets import settings_from

EXAMPLE = """{
  "type": "object",
  "properties": {"total": {"type": "integer"}},
  "required": ["total"],
  "additionalProperties": false
}"""


class Structured:
    """Ask for JSON that satisfies a schema."""

    NODE_ID = "TOPSStructured"
    TITLE = "TOPS Structured (image to JSON)"
    CATEGORY = "TOPS"
    DESCRIPTION = "Asks for JSON that satisfies a schema: each token is chosen among those the schema allows."
    SEARCH_ALIASES = ["json", "schema", "extract", "ocr", "receipt", "fields", "data", "vlm", "vqa", "image to text"]
    RETURN_TYPES = ("STRING", "STRING", "IMAGE", STATS, "STRING")
    RETURN_NAMES = ("json", "fields", "token_map", "stats", "reasoning")
    OUTPUT_TOOLTIPS = (
        "The whole answer as JSON.",
        "The values of the chosen fields as texts, as a list in their order.",
        "The pictures beside what was kept of them at each stage.",
        "Everything measured, for TOPS Token Map.",
        REASONING_TIP,
    )
    OUTPUT_IS_LIST = (False, True, False, False, False)
    FUNCTION = "ask"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        fields = (
            "Fields to give out, separated by commas; a.b is field b of a, items.0 the first item. A field that is "
            "optional in the schema and that the model leaves out is an empty text."
        )
        return {
            "required": {
                "model": (MODEL, {"tooltip": "From TOPS Load Model."}),
                "prompt": (
                    "STRING",
                    {"default": "What is the total?", "multiline": True, "tooltip": "What to read from the picture."},
                ),
                "json_schema": (
                    "STRING",
                    {"default": EXAMPLE, "multiline": True, "tooltip": "JSON Schema of the answer, an object."},
                ),
                "fields": ("STRING", {"default": "total", "tooltip": fields}),
                **generation_widgets(),
            },
            "optional": {
                "image": ("IMAGE", {"tooltip": "The picture; a batch is several pictures of one question."}),
                "pruning": (PRUNING, {"tooltip": PRUNING_TIP}),
                "thinking": THINKING,
                "unload": UNLOAD,
                **growing_pictures(first=2),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, json_schema: str | None, images: object = None) -> bool | str:
        # ComfyUI gives every check the groups of inputs.
        try:
            if json_schema is not None:
                _schema(json_schema)
        except InvalidInput as error:
            return refusal(str(error))
        return True

    @classmethod
    def IS_CHANGED(cls, seed: int | None = 0, temperature: float | None = 0.0, **_: Any) -> float:
        return seed_change(seed, temperature)

    def ask(
        self,
        model: NodeModel,
        prompt: str | None,
        json_schema: str,
        fields: str,
        max_tokens: int,
        temperature: float,
        seed: int,
        image: Tensor | None = None,
        pruning: Pruning | None = None,
        thinking: str | None = "",
        unload: bool = False,
        images: dict[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "thinking": thinking}
        generation = Generation(json_schema=_schema(json_schema), **settings_from(Generation, options))
        pictures = all_pictures({"image": image}, images)
        messages = [user_message(prompt, *pictures)]
        handle = expect_model(model)
        with freed_if(unload, handle):
            answer = ask_streaming(handle, Request(messages, pruning_for(handle, pruning), generation))
        if answer.finish_reason == "length":
            raise InvalidInput(f"The JSON was not complete after {max_tokens} tokens; raise max_tokens.")
        read = json.loads(answer.text)
        schema = json.loads(generation.json_schema or "{}")
        values = [_as_text(_field(read, name.strip(), schema)) for name in fields.split(",") if name.strip()]
        result = (answer.text, values, map_of(answer), Stats((answer,)), answer.reasoning)
        return {"ui": {"text": [answer.text], "notes": notes(handle, pictures, pruning)}, "result": result}


def _schema(text: str) -> str:
    """Return the schema of the widget. It must be a text: a path would let a shared workflow read files."""
    if not text.strip().startswith("{"):
        raise InvalidInput('json_schema is not a JSON Schema object, such as {"type": "object", "properties": {...}}.')
    return Generation(json_schema=text).json_schema or ""


def _field(value: Any, path: str, schema: dict[str, Any]) -> Any:
    """Return a field of the answer; an empty text for one that the schema has and the model left out."""
    for part in path.split("."):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, dict) and has_field(schema, path):
            return ""
        else:
            raise InvalidInput(f"The answer has no field {quote(path)}; fields are named as in the schema.")
    return value


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
