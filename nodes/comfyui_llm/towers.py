"""The signals of ComfyUI's vision towers, under the names that pruning methods read (``VisualTokens``)."""

import itertools
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tops_engine.families.parts.packed_tower import PackedTower
from tops_engine.families.parts.vision_signals import Call, patch_attention, tile_numbers
from tops_engine.families.parts.vision_tower import LayerAttention, PatchTower, Signals, middle_layer, shallow_layer
from tops_engine.media.layout import VisualLayout, grid_boxes

#: Signals that every model gives, and those that come from the attention inside a tower.
OF_PATCHES = frozenset({"encoder_features", "tiles"})
OF_ATTENTION = frozenset(
    {"vision_attention", "received_attention", "middle_attention", "shallow_attention", "vision_keys"}
    | {"last_layer_attention", "last_layer_keys"}
)


class CoreTower(ABC):
    """A vision tower of ComfyUI and its projector.

    Attributes
    ----------
    projector : the module whose input are the rows that become visual tokens.
    signal_names : the signals that the tower gives.
    """

    projector: nn.Module
    signal_names: frozenset[str] = OF_PATCHES | OF_ATTENTION

    @abstractmethod
    def taps(self) -> Sequence[nn.Module]:
        """Return the modules whose calls :meth:`signals` reads."""

    @abstractmethod
    def signals(self, projector: Call, taps: Sequence[Call], grid: tuple[int, int]) -> Signals:
        """Return the signals of one picture: functions that compute [1, tokens] or [1, tokens, c], in prompt order.

        Parameters
        ----------
        grid : rows and columns of the visual tokens.
        """

    @abstractmethod
    def grid(self, extra: Any, size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of the visual tokens of a picture.

        Parameters
        ----------
        extra : what ComfyUI notes beside the tokens (``preprocess_embed``).
        size : width and height of the picture, as ComfyUI gave it to the tower.
        """

    def layout(self, grid: tuple[int, int], _size: tuple[int, int]) -> VisualLayout:
        """Return where the visual tokens lie in the picture."""
        return VisualLayout(grid_boxes(*grid), torch.zeros(grid[0] * grid[1]).long(), (grid,))

    def deepstack(self, _extra: Any) -> Sequence[Tensor]:
        """Return what the first decoder layers add to the tokens, [n, d] for each layer."""
        return ()

    def project(self, rows: Tensor) -> Tensor:
        """Run the projector on rows like its input: [k, c] -> [k, d]."""
        projected: Tensor = self.projector(rows)
        return projected


class QwenTower(CoreTower):
    """The towers of Qwen2.5-VL, Qwen3-VL and Qwen3.5: the engine reads its own families of these in the same way."""

    def __init__(self, visual: Any) -> None:
        self.projector = visual.merger
        self._packed = (_WindowedTower if hasattr(visual, "get_window_index") else _FullTower)(visual)
        self._visual = visual

    def taps(self) -> Sequence[nn.Module]:
        return self._packed.taps()

    def signals(self, projector: Call, taps: Sequence[Call], grid: tuple[int, int]) -> Signals:
        order = self._packed.prompt_order(grid)
        found = self._packed.signals(taps)
        if order is None:
            return found
        return {name: _reordered(compute, order) for name, compute in found.items()}

    def grid(self, extra: Any, size: tuple[int, int]) -> tuple[int, int]:
        patches = extra["grid"] if isinstance(extra, dict) else extra
        side = int(self._visual.spatial_merge_size)
        _, rows, columns = patches[0].tolist()
        return rows // side, columns // side

    def deepstack(self, extra: Any) -> Sequence[Tensor]:
        return extra["deepstack"] if isinstance(extra, dict) else ()

    def project(self, rows: Tensor) -> Tensor:
        # The merger takes patches, and a row holds those of a token.
        return super().project(rows.view(-1, self._packed.shape.hidden_size))


class _CorePackedTower(PackedTower):
    """The engine's reader of Qwen towers on ComfyUI's modules, which have the same parts and other configs."""

    def __init__(self, visual: Any) -> None:
        blocks, merge = visual.blocks, int(visual.spatial_merge_size)
        config = SimpleNamespace(
            depth=len(blocks),
            hidden_size=visual.hidden_size,
            intermediate_size=next(iter(blocks[0].mlp.children())).out_features,
            in_channels=3,
            temporal_patch_size=2,
            patch_size=visual.patch_size,
            spatial_merge_size=merge,
        )
        full = getattr(visual, "fullatt_block_indexes", None)
        if full is not None:
            config.fullatt_block_indexes = [number for number in full if number < len(blocks)] or [len(blocks) - 1]
        super().__init__(SimpleNamespace(config=config, blocks=blocks, merger=visual.merger))
        self.core = visual

    def prompt_order(self, _grid: tuple[int, int]) -> Tensor | None:
        """Return the tower's places of the tokens in prompt order; None if the order is the same."""
        return None


class _WindowedTower(_CorePackedTower):
    """Qwen2.5-VL: most layers attend within windows, and the tower holds the patches in their order."""

    def rotate(self, queries: Tensor, keys: Tensor, layer: Call) -> tuple[Tensor, Tensor]:
        rotate = sys.modules[type(self.core).__module__].apply_rotary_pos_emb_vision
        rotated: tuple[Tensor, Tensor] = rotate(queries, keys, *layer.arguments[1])
        return rotated

    def lengths(self, layer: Call) -> list[int]:
        lengths: list[int] = layer.arguments[2].diff().tolist()
        return lengths

    def prompt_order(self, grid: tuple[int, int]) -> Tensor | None:
        merge = int(self.core.spatial_merge_size)
        order, _ = self.core.get_window_index(torch.tensor([[1, grid[0] * merge, grid[1] * merge]]))
        return order.argsort()


class _FullTower(_CorePackedTower):
    """Qwen3-VL and Qwen3.5: all layers attend to the whole picture."""

    def rotate(self, queries: Tensor, keys: Tensor, layer: Call) -> tuple[Tensor, Tensor]:
        rotate = sys.modules[type(self.attention).__module__].apply_rope
        rotated: tuple[Tensor, Tensor] = rotate(queries, keys, layer.keywords["position_embeddings"])
        return rotated


def _reordered(compute: Any, order: Tensor) -> Any:
    return lambda: (values := compute())[:, order.to(values.device)]


class SiglipTower(CoreTower):
    """The tower of Gemma 3: a square in the middle of the picture, each token the mean of 4 x 4 patches."""

    def __init__(self, vision_model: Any, projector: Any) -> None:
        self.projector, self._weight = projector.mm_soft_emb_norm, projector.mm_input_projection_weight
        layers = vision_model.encoder.layers
        numbers = -1, middle_layer(len(layers)), shallow_layer(len(layers))
        last, middle, shallow = (_siglip_attention(layers[number]) for number in numbers)
        # The reader needs no other sizes: they are for the FLOPs of the tower.
        shape: Any = SimpleNamespace(num_patches=projector.patches_per_image**2)
        self._reader = PatchTower(last, last, middle, shallow, shape, block=projector.kernel_size)
        self._side = int(projector.tokens_per_side)

    def taps(self) -> Sequence[nn.Module]:
        return self._reader.taps()

    def signals(self, projector: Call, taps: Sequence[Call], grid: tuple[int, int]) -> Signals:
        return {
            "encoder_features": lambda: projector.input,
            "tiles": lambda: tile_numbers(projector.input),
            **self._reader.signals(taps),
        }

    def grid(self, extra: Any, size: tuple[int, int]) -> tuple[int, int]:
        return self._side, self._side

    def project(self, rows: Tensor) -> Tensor:
        return super().project(rows) @ self._weight.to(rows)

    def layout(self, grid: tuple[int, int], size: tuple[int, int]) -> VisualLayout:
        width, height = size
        side = min(width, height)
        left, top = (width - side) / 2 / width, (height - side) / 2 / height
        boxes = grid_boxes(*grid, area=(left, top, 1 - left, 1 - top))
        return VisualLayout(boxes, torch.zeros(grid[0] * grid[1]).long(), (grid,))


def _siglip_attention(layer: Any) -> LayerAttention:
    attention = layer.self_attn
    head_dim = attention.q_proj.out_features // attention.heads
    return LayerAttention(attention.q_proj, attention.k_proj, attention.heads, head_dim**-0.5)


class PooledTower(CoreTower):
    """The tower of Gemma 4: pictures in their own proportions, each token the mean of 3 x 3 patches."""

    def __init__(self, vision_model: Any, projector: Any) -> None:
        self.projector = projector
        layers = vision_model.encoder.layers
        self._last, self._middle = layers[-1].self_attn, layers[middle_layer(len(layers))].self_attn
        self._shallow = layers[shallow_layer(len(layers))].self_attn
        self._vision_model = vision_model
        self._block = int(vision_model.pooling_kernel_size)

    def taps(self) -> Sequence[nn.Module]:
        attentions = self._last, self._middle, self._shallow
        return self._last, *itertools.chain(*((attention.q_norm, attention.k_norm) for attention in attentions))

    def signals(self, projector: Call, taps: Sequence[Call], grid: tuple[int, int]) -> Signals:
        layer, queries, keys, middle_queries, middle_keys, shallow_queries, shallow_keys = taps
        heads = int(self._last.num_heads)

        def received(queries: Call, keys: Call, num_heads: int) -> Tensor:
            return self._received(layer, queries, keys, grid, num_heads)

        return {
            "encoder_features": lambda: projector.input,
            "tiles": lambda: tile_numbers(projector.input),
            "vision_attention": lambda: received(queries, keys, heads),
            "received_attention": lambda: received(queries, keys, heads),
            "middle_attention": lambda: received(middle_queries, middle_keys, heads),
            "shallow_attention": lambda: received(shallow_queries, shallow_keys, heads),
            "vision_keys": lambda: self._means(keys.output.float().mean(dim=2), grid),
            "last_layer_attention": lambda: received(queries, keys, 1),
            "last_layer_keys": lambda: self._means(keys.output.float().flatten(2), grid),
        }

    def grid(self, extra: Any, size: tuple[int, int]) -> tuple[int, int]:
        side = int(self._vision_model.patch_size) * self._block
        return size[1] // side, size[0] // side

    def _received(self, layer: Call, queries: Call, keys: Call, grid: tuple[int, int], num_heads: int) -> Tensor:
        """Return the mean attention that the patches of each token receive: float32 [1, tokens]."""
        rotate = sys.modules[type(self._vision_model).__module__]._apply_vision_2d_rope
        count = grid[0] * grid[1] * self._block**2  # padding stands behind the patches
        freqs = layer.arguments[1]
        query, key = (
            rotate(call.output.transpose(1, 2), freqs).transpose(1, 2).flatten(2)[:, :count] for call in (queries, keys)
        )
        # The norms of queries and keys stand for the scale. One head over all values has the mean of theirs.
        scale = (num_heads / int(self._last.num_heads)) ** 0.5
        attention = patch_attention(query, key, num_heads, scale, has_cls=False)
        return self._means(attention[..., None], grid)[..., 0]

    def _means(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Average over the patches of each token: [1, patches, c] -> [1, tokens, c]."""
        (rows, columns), block = grid, self._block
        values = patches[0, : rows * columns * block**2].view(rows, block, columns, block, -1)
        return values.mean(dim=(1, 3)).flatten(0, 1)[None]


class NoTower(CoreTower):
    """Gemma 4 12B: patches go to the language model without a tower, so that there is no attention between them."""

    def __init__(self, embedder: Any, projector: Any) -> None:
        self.projector = projector
        self.signal_names = OF_PATCHES
        self._side = int(embedder.patch_size) * int(embedder.pooling_kernel_size)

    def taps(self) -> Sequence[nn.Module]:
        return ()

    def signals(self, projector: Call, taps: Sequence[Call], grid: tuple[int, int]) -> Signals:
        return {"encoder_features": lambda: projector.input, "tiles": lambda: tile_numbers(projector.input)}

    def grid(self, extra: Any, size: tuple[int, int]) -> tuple[int, int]:
        return size[1] // self._side, size[0] // self._side


def tower_of(transformer: Any) -> CoreTower | None:
    """Return the reader of the vision tower of one of ComfyUI's models, by the parts that it has; None if unknown."""
    visual, vision = getattr(transformer, "visual", None), getattr(transformer, "vision_model", None)
    projector = getattr(transformer, "multi_modal_projector", None)
    if visual is not None and hasattr(visual, "merger") and hasattr(getattr(visual.blocks[0], "attn", None), "qkv"):
        return QwenTower(visual)
    if hasattr(projector, "mm_soft_emb_norm") and hasattr(vision, "encoder"):
        return SiglipTower(vision, projector)
    if hasattr(vision, "pooling_kernel_size") and hasattr(projector, "embedding_projection"):
        return PooledTower(vision, projector) if hasattr(vision, "encoder") else NoTower(vision, projector)
    return None
