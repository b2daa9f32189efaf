"""Build from given tensors the tokens that a method sees between layers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tops_engine.media.layout import VisualLayout, grid_boxes
from tops_engine.methods import LayerTokens


def grid_layout(rows: int, columns: int) -> VisualLayout:
    return VisualLayout(grid_boxes(rows, columns), torch.zeros(rows * columns).long(), ((rows, columns),))


def layer_tokens(
    layout: VisualLayout,
    kept: Tensor | None = None,
    hidden_states: Tensor | None = None,
    attention: Mapping[tuple[str, str, str], Tensor] | None = None,
    **computed: Tensor,
) -> LayerTokens:
    """Return layer tokens with attention rows by (rows, layer, heads); reading anything not given fails."""
    kept = torch.arange(layout.num_tokens) if kept is None else kept
    hidden_states = torch.zeros(len(kept), 1) if hidden_states is None else hidden_states

    def rows(rows: Any, layer: Any = "next", heads: Any = "mean") -> Tensor:
        return (attention or {})[rows, layer, heads]

    names = ("text_similarity", "normed_states", "previous_keys", "previous_states")
    return LayerTokens(hidden_states, kept, layout, rows, *(lambda name=name: computed[name] for name in names))
