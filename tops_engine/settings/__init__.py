"""The options of the engine. Flags, node widgets, fields of the chat model and request bodies derive from them."""

from tops_engine.settings.base import Settings
from tops_engine.settings.caption_text import CaptionText
from tops_engine.settings.generation import Generation
from tops_engine.settings.method_options import presets
from tops_engine.settings.pruning import Pruning, pruning_fields
from tops_engine.settings.spec import DEFAULT_MODEL, ModelSpec

__all__ = [
    "DEFAULT_MODEL",
    "CaptionText",
    "Generation",
    "ModelSpec",
    "Pruning",
    "Settings",
    "presets",
    "pruning_fields",
]
