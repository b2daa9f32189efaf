"""torch for modules that describe options: it loads when it is first used.

Flags, node widgets and help texts are made of the settings, and these of the classes in ``methods/``; nobody who asks
for help should wait the seconds that torch takes. So those modules import these names instead of torch's own.
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
