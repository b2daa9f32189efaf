"""Make PyPI's torchvision importable beside a torch without CUDA, in every process of an environment.

Its compiled operators cannot be loaded there, but its import refers to two of them. This module declares them first,
without code: no step from a picture to pixel values calls them.
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
    """A finder that declares the operators before torchvision is imported, and finds no module itself."""

    # The declarations exist only as long as the library object.
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
