"""The model families, one module each.

:data:`FAMILIES` holds them by the model types they run: those of this package, and those that a plugin or the user's
own code defines (see :mod:`tops_engine.registry`).
"""

import importlib
import pkgutil
from typing import Any

from tops_engine.dependencies import check_versions

check_versions()  # before transformers is imported

from tops_engine.families.base import FAMILIES, Family
from tops_engine.families.decoder import Decoder
from tops_engine.families.prompt import Prompt

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def family_for(config: dict[str, Any]) -> type[Family] | None:
    """Return the family that runs the checkpoint with this ``config.json``, or None."""
    return next((family for family in FAMILIES.values() if family.matches(config)), None)


__all__ = ["FAMILIES", "Decoder", "Family", "Prompt", "family_for"]
