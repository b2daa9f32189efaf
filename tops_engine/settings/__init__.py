"""Every option of the engine, defined once.

Flags, node widgets, chat model fields and request bodies derive from these classes.
"""

from tops_engine.settings.base import Settings
from tops_engine.settings.generation import Generation
from tops_engine.settings.pruning import Pruning, presets, pruning_fields
from tops_engine.settings.spec import DEFAULT_MODEL, ModelSpec

__all__ = ["DEFAULT_MODEL", "Generation", "ModelSpec", "Pruning", "Settings", "presets", "pruning_fields"]
