"""Vision towers that are plain transformers over patches: what they know of patches, beside the features themselves."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tops_engine.families.base import Family
from tops_engine.families.parts.vision_signals import Call, patch_attention


class PlainTower(Family, register=False):
    """A family whose vision tower is a stack of layers with separate projections of queries and keys."""

    @property
    @abstractmethod
    def vision_layers(self) -> Sequence[Any]:
        """The layers of the vision tower, first to last."""

    @property
    def feature_layers(self) -> list[Any]:
        """The vision layers whose outputs feed the projector."""
        selected = self.model.config.vision_feature_layer
        # hidden_states[k] is the output of layer k - 1; counted from the end, both lists end with the last layer.
        indices = [selected] if isinstance(selected, int) else selected
        return [self.vision_layers[index - 1 if index > 0 else index] for index in indices]

    def attention_of(self, layer: Any) -> Any:
        """The attention module of a vision layer."""
        return layer.self_attn

    def projections(self, attention: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
        """The modules that make the queries and keys of an attention module."""
        return attention.q_proj, attention.k_proj

    @property
    def has_cls(self) -> bool:
        """Whether the vision tower has a [CLS] token in front of its patches."""
        return False

    def rows(self, patches: Tensor) -> Tensor:
        """Values of patches, [tiles, patches, c], for the rows that the projector sees: [tiles, rows, c]."""
        return patches

    def attention_taps(self) -> Sequence[torch.nn.Module]:
        return self.projections(self.attention_of(self.feature_layers[-1]))

    def token_attention(self, taps: Sequence[Call]) -> Tensor:
        queries, keys = taps
        attention = self.attention_of(self.feature_layers[-1])
        return self._attention(queries, keys, attention.num_heads, attention.scale)

    def signal_taps(self) -> Sequence[torch.nn.Module]:
        return *self.projections(self.attention_of(self.vision_layers[-1])), *self.feature_layers

    def signals(self, attention_taps: Sequence[Call], signal_taps: Sequence[Call]) -> dict[str, Callable[[], Tensor]]:
        _, keys = attention_taps
        last_queries, last_keys, *layers = signal_taps
        num_heads = self.attention_of(self.feature_layers[-1]).num_heads
        first_patch = int(self.has_cls)

        def vision_keys() -> Tensor:
            heads = keys.output[:, first_patch:].float()
            return self.rows(heads.reshape(*heads.shape[:2], num_heads, -1).mean(dim=2))

        def cls_features() -> Tensor:
            cls = torch.cat([layer.output[:, :1] for layer in layers], dim=-1)
            return self.rows(cls.repeat(1, keys.output.shape[1] - 1, 1))

        signals = {
            "vision_keys": vision_keys,
            "last_layer_attention": lambda: self._attention(
                last_queries, last_keys, 1, last_keys.output.shape[-1] ** -0.5
            ),
            "last_layer_keys": lambda: self.rows(last_keys.output[:, first_patch:].float()),
        }
        return signals | ({"cls_features": cls_features} if self.has_cls else {})

    def _attention(self, queries: Call, keys: Call, num_heads: int, scale: float) -> Tensor:
        attention = patch_attention(queries.output, keys.output, num_heads, scale, self.has_cls)
        return self.rows(attention[..., None])[..., 0]
