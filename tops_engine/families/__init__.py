"""The model families. Every module of this package is imported, so a new family is one new file."""

import importlib
import pkgutil
from typing import Any

from tops_engine.families.base import Family
from tops_engine.families.decoder import Decoder
from tops_engine.families.prompt import Prompt

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

FAMILIES: dict[str, type[Family]] = dict(sorted(Family.registry.items()))


def family_for(config: dict[str, Any]) -> type[Family] | None:
    """The family that runs the checkpoint with that ``config.json``, if any does."""
    return next((family for family in FAMILIES.values() if family.matches(config)), None)


__all__ = ["FAMILIES", "Decoder", "Family", "Prompt", "family_for"]
