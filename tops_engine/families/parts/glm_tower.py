"""The vision tower of GLM-4V: Qwen-VL's, with a convolution that makes one row of 2 x 2 patches before the merger."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tops_engine.device.transfer import to_device
from tops_engine.families.parts.packed_tower import PackedTower
from tops_engine.families.parts.vision_signals import Call
from tops_engine.families.parts.vision_tower import Signals
from tops_engine.flops import PackedVisionShape


@dataclass(frozen=True)
class GlmVisionShape(PackedVisionShape):
    """Sizes of the tower; the merger is a linear layer and a gated feed-forward part of width ``merger_size``."""

    merger_size: int = 0

    @classmethod
    def from_config(cls, vision: Any) -> "GlmVisionShape":
        width, text_width = vision.hidden_size, vision.out_hidden_size
        sizes = vars(PackedVisionShape.from_config(vision)) | {"feed_forward_weights": 3 * width * text_width}
        return cls(**sizes, merger_size=vision.intermediate_size)

    def merger_flops(self) -> int:
        return 2 * self.text_hidden_size * (self.merged_size + self.text_hidden_size + 3 * self.merger_size)


class GlmTower(PackedTower):
    """Read the signals of the tower. The encoder features of a token are what the convolution makes of its patches."""

    def __init__(self, visual: Any) -> None:
        super().__init__(visual)
        self.shape = GlmVisionShape.from_config(visual.config)

    def signals(self, taps: Sequence[Call]) -> Signals:
        *_, merger = taps
        return super().signals(taps) | {"encoder_features": lambda: merger.input[None]}

    def inputs(self, grids: Tensor) -> dict[str, Any]:
        # The table of positions is read with the ends of the frames on the tower's device.
        inputs = super().inputs(grids)
        return inputs | {"cu_seqlens": to_device(inputs["cu_seqlens"], self.visual.device)}
