"""The pruning methods. Every module of this package is imported, so a new method is one new file."""

import importlib
import pkgutil

from tops_engine.methods.base import (
    AttentionRows,
    ClipEmbeddings,
    LayerTokens,
    Method,
    Positions,
    Rows,
    Selection,
    VisualTokens,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

#: By name; a method defined elsewhere joins when its class is defined.
METHODS: dict[str, type[Method]] = Method.registry

__all__ = [
    "METHODS",
    "AttentionRows",
    "ClipEmbeddings",
    "LayerTokens",
    "Method",
    "Positions",
    "Rows",
    "Selection",
    "VisualTokens",
]
