"""Makes PyPI's torchvision importable beside a torch without CUDA, in every process of an environment.

Its compiled operators do not load there, and it describes two of them when it is imported. They are declared here
first, without code: nothing on the way from a picture to pixel values calls them.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class BeforeTorchvision(MetaPathFinder):
    """Declares the operators when torchvision is about to be imported, and finds nothing itself."""

    # What it declares is gone when it is.
    library: Any = None

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        fragment: Any = torch.library.Library
        BeforeTorchvision.library = fragment("torchvision", "FRAGMENT")
        for operator in OPERATORS:
            BeforeTorchvision.library.define(operator)


sys.meta_path.insert(0, BeforeTorchvision())
