"""torch for modules that define options, imported when it is first used.

Flags, node widgets and help texts are derived from the settings, and the settings from the classes in ``methods/``.
Importing torch takes seconds, which showing a help text should not. Therefore those modules import torch from here.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    import torch.nn.functional as F
    from torch import Tensor as Tensor
else:

    class _LazyModule(ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self.__name__), name)

    torch = _LazyModule("torch")
    F = _LazyModule("torch.nn.functional")
    Tensor = Any  # annotations only

__all__ = ["F", "Tensor", "torch"]
