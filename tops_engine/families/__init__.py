"""The model families. Every module of this package is imported, so a new family is one new file."""

import importlib
import pkgutil

from tops_engine.families.base import Family, Prompt
from tops_engine.families.decoder import Decoder

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

FAMILIES: dict[str, type[Family]] = dict(sorted(Family.registry.items()))

__all__ = ["FAMILIES", "Decoder", "Family", "Prompt"]
