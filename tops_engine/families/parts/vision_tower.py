"""Read the signals of a vision tower: what it computes of its patches, beside the features themselves.

The names of the signals are those of :class:`tops_engine.methods.VisualTokens`.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from tops_engine.families.parts.tile_grid import block_means
from tops_engine.families.parts.vision_signals import Call, patch_attention, received_attention
from tops_engine.flops import VisionShape

#: Functions that compute [tiles, rows] or [tiles, rows, c], with the rows that the projector sees, by signal name.
Signals = dict[str, Callable[[], Tensor]]


class VisionTower(Protocol):
    """The interface of a vision tower that a family uses."""

    def taps(self) -> Sequence[nn.Module]:
        """Return the modules whose calls :meth:`signals` reads."""

    def signals(self, taps: Sequence[Call]) -> Signals:
        """Return the signals of a run of the tower.

        Parameters
        ----------
        taps : the calls of the modules of :meth:`taps` in that run, in the same order.

        Returns
        -------
        At least ``vision_attention``. ``encoder_features`` and ``tiles`` are added by the family if they are absent.
        """


@dataclass(frozen=True)
class LayerAttention:
    """The modules of one vision layer whose outputs are its queries and keys, [tiles, tokens, width]."""

    queries: nn.Module
    keys: nn.Module
    num_heads: int
    scale: float

    @classmethod
    def of(cls, layer: Any) -> Self:
        """Find the modules in a layer of CLIP or SigLIP."""
        attention = layer.self_attn
        return cls(attention.q_proj, attention.k_proj, attention.num_heads, attention.scale)

    def received(self, queries: Call, keys: Call, has_cls: bool) -> Tensor:
        """Return :func:`patch_attention` of these queries and keys: float32 [tiles, patches]."""
        return patch_attention(queries.output, keys.output, self.num_heads, self.scale, has_cls)

    def received_from_all(self, queries: Call, keys: Call, has_cls: bool) -> Tensor:
        """Return :func:`received_attention` of these queries and keys: float32 [tiles, patches]."""
        return received_attention(queries.output, keys.output, self.num_heads, self.scale, has_cls)


@dataclass(frozen=True)
class TileLayers:
    """A plain tower as the engine runs it, layer by layer.

    Attributes
    ----------
    embed : makes tokens of tiles: [t, 3, height, width] -> [t, n, d].
    layers : the tower's layers.
    attention : finds the queries and keys of a layer.
    arguments : further arguments of a layer.
    """

    embed: Callable[[Tensor], Tensor]
    layers: Sequence[nn.Module]
    attention: Callable[[Any], LayerAttention]
    arguments: tuple[Any, ...] = (None,)


@dataclass(frozen=True)
class PatchTower:
    """A vision tower that is a plain transformer: tiles of patches, separate projections of queries and keys.

    Attributes
    ----------
    attention : of the layer that feeds the projector.
    last_attention : of the tower's last layer.
    middle_attention : of the layer of :func:`middle_layer`.
    shallow_attention : of the layer of :func:`shallow_layer`.
    shape : sizes of tower and projector, for FLOPs.
    has_cls : whether a [CLS] token stands in front of the patches.
    feature_layers : the layers whose outputs, concatenated, feed the projector. Empty if the projector reads anything
        else, such as blocks of patches; then it cannot make a token of [CLS], and there are no ``cls_features``.
    block : patches along a side of the block that the projector makes one token of (pixel shuffle). Signals are
        averaged over the patches of a block.
    layers : how the engine runs the tower layer by layer, to drop patches inside it; None if it cannot.
    """

    attention: LayerAttention
    last_attention: LayerAttention
    middle_attention: LayerAttention
    shallow_attention: LayerAttention
    shape: VisionShape
    has_cls: bool = False
    feature_layers: Sequence[nn.Module] = ()
    block: int = 1
    layers: TileLayers | None = None

    def taps(self) -> Sequence[nn.Module]:
        attentions = self.attention, self.last_attention, self.middle_attention, self.shallow_attention
        projections = [(attention.queries, attention.keys) for attention in attentions]
        return *itertools.chain(*projections), *self.feature_layers

    def signals(self, taps: Sequence[Call]) -> Signals:
        queries, keys, last_queries, last_keys, middle_queries, middle_keys, *rest = taps
        shallow_queries, shallow_keys, *layers = rest
        first_patch = int(self.has_cls)

        def relevance(attention: LayerAttention, queries: Call, keys: Call) -> Tensor:
            return self._rows(attention.received(queries, keys, self.has_cls)[..., None])[..., 0]

        def received(attention: LayerAttention, queries: Call, keys: Call) -> Tensor:
            return self._rows(attention.received_from_all(queries, keys, self.has_cls)[..., None])[..., 0]

        def vision_keys() -> Tensor:
            values = keys.output[:, first_patch:].float()
            return self._rows(values.reshape(*values.shape[:2], self.attention.num_heads, -1).mean(dim=2))

        def last_layer_attention() -> Tensor:
            scale = last_keys.output.shape[-1] ** -0.5
            attention = patch_attention(last_queries.output, last_keys.output, 1, scale, self.has_cls)
            return self._rows(attention[..., None])[..., 0]

        def cls_features() -> Tensor:
            cls = torch.cat([layer.output[:, :1] for layer in layers], dim=-1)
            return cls.repeat(1, keys.output.shape[1] - 1, 1)

        signals: Signals = {
            "vision_attention": partial(relevance, self.attention, queries, keys),
            "shallow_attention": partial(relevance, self.shallow_attention, shallow_queries, shallow_keys),
            "vision_keys": vision_keys,
            "received_attention": partial(received, self.attention, queries, keys),
            "middle_attention": partial(received, self.middle_attention, middle_queries, middle_keys),
            "last_layer_attention": last_layer_attention,
            "last_layer_keys": lambda: self._rows(last_keys.output[:, first_patch:].float()),
        }
        return signals | ({"cls_features": cls_features} if self.has_cls and layers else {})

    def features(self, layers: Sequence[Call]) -> Tensor:
        """Return the patch features of a run from the calls of ``feature_layers``: [tiles, patches, c]."""
        return torch.cat([layer.output[:, int(self.has_cls) :] for layer in layers], dim=-1)

    def _rows(self, patches: Tensor) -> Tensor:
        if self.block == 1:
            return patches
        if patches.shape[1] < self.shape.num_patches:
            # After patches were dropped, those of a token stand one after the other.
            return patches.reshape(len(patches), -1, self.block**2, patches.shape[-1]).mean(dim=2)
        return block_means(patches, self.block)


def middle_layer(num_layers: int) -> int:
    """Return the index of a layer in the middle of a tower, which attends to objects (HiPrune, arXiv 2508.00553).

    It is the 9th of the 24 layers of CLIP, as in the source, and at the same depth in towers of another length.
    """
    return max(0, round(num_layers * 9 / 24) - 1)


def shallow_layer(num_layers: int) -> int:
    """Return the index of an early layer of a tower, which attends to details (VScan, arXiv 2505.22654).

    It is the 6th of the 24 layers of CLIP, as in the source, and at the same depth in towers of another length.
    """
    return max(0, round(num_layers * 6 / 24) - 1)


def selected_layers(layers: Sequence[Any], selected: int | Sequence[int]) -> list[Any]:
    """Return the layers whose outputs are the hidden states that a ``vision_feature_layer`` config entry names.

    ``hidden_states[k]`` is the output of layer k - 1. Negative indices count from the end of both lists.
    """
    indices = [selected] if isinstance(selected, int) else selected
    return [layers[index - 1 if index > 0 else index] for index in indices]
