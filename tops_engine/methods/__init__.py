"""The pruning methods, one module each.

:data:`METHODS` holds them by name: those of this package, and those that a plugin or the user's own code defines (see
:mod:`tops_engine.registry`).
"""

import importlib
import pkgutil

from tops_engine.methods.base import METHODS, Method, Positions, Rectify, Selection
from tops_engine.methods.tokens import AttentionRows, ClipEmbeddings, LayerTokens, Rows, VisualTokens

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "METHODS",
    "AttentionRows",
    "ClipEmbeddings",
    "LayerTokens",
    "Method",
    "Positions",
    "Rectify",
    "Rows",
    "Selection",
    "VisualTokens",
]
