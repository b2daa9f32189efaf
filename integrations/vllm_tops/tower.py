"""Prune the tokens of a vision tower of vLLM by signals that are computed from its captured inputs and outputs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.model_executor.models.interfaces import SupportsMultiModal

from tops_engine.budget import Keep
from tops_engine.families.parts.vision_signals import Call, captured_calls, patch_attention
from tops_engine.media.layout import VisualLayout
from tops_engine.methods import Selection, VisualTokens
from tops_engine.methods.base import with_dropped
from vllm_tops.settings import kept_tokens, read_pruning, with_keep

Arrange = Callable[[Tensor, int], Tensor]


class PrunedModel(SupportsMultiModal):
    """A model of vLLM whose pictures are pruned; list it before vLLM's own class in the bases of a model."""

    supports_tower_connector_lora = False


class WithoutTowerGraph(PrunedModel):
    """A pruned model of a class whose tower vLLM can run as a CUDA graph; the graph would skip the selection."""

    def get_encoder_cudagraph_config(self) -> Any:
        return replace(super().get_encoder_cudagraph_config(), modalities=[])


class Tower:
    """The CLIP or SigLIP tower of a LLaVA model and its projector, whose inputs and outputs are captured.

    vLLM's fused attention does not return attention weights, so the weights of one layer are computed again from the
    same queries and keys. With tensor parallelism a rank has a part of the heads. The signals of all ranks are
    gathered, so that all ranks choose the same tokens.

    Args:
        layers: The vision layers that feed the projector. ``self_attn`` of the last one, which projects queries, keys
            and values at once, gives the signals.
        projector: The module between tower and language model.
        has_cls: Whether the first token of the tower is [CLS].
    """

    def __init__(self, layers: Sequence[Any], projector: nn.Module, has_cls: bool) -> None:
        self.layers = layers
        self.attention = layers[-1].self_attn
        self.projector = projector
        self.has_cls = has_cls

    @property
    def num_ranks(self) -> int:
        """The number of ranks that share the heads."""
        return int(self.attention.num_heads // self.attention.num_heads_per_partition)

    @contextmanager
    def listening(self) -> Iterator["PatchPass"]:
        """Capture the inputs and outputs of the modules while pictures go through the tower."""
        with captured_calls(self.attention.qkv_proj, *self.layers) as (qkv, *layers):
            yield PatchPass(self, qkv, layers)


class Pass(ABC):
    """One run of a vision tower, on tiles of one or several pictures.

    Args:
        projector: The module or function between tower and language model, with one row out for each row in.
    """

    def __init__(self, projector: Callable[[Tensor], Tensor]) -> None:
        self.projector = projector

    @abstractmethod
    def signals(self) -> dict[str, Callable[[], Tensor]]:
        """Return the signals for methods, by their names in :class:`VisualTokens`.

        Each function returns ``[tiles, rows]`` or ``[tiles, rows, c]``, with the rows that the projector gets.
        """

    def images(
        self, features: Sequence[Tensor], layouts: Sequence[VisualLayout], arrange: Arrange
    ) -> list[VisualTokens]:
        """Return the visual tokens of each picture, with the signals that methods read.

        Args:
            features: The projected tokens of each picture, ``[n, d]``.
            layouts: The places of the tokens in each picture.
            arrange: Function that orders values of this run like the tokens of one picture, given by its number:
                ``[tiles, rows, c]`` to ``[n, c]``, with 0 for tokens that belong to no row.
        """
        computed = {name: cache(compute) for name, compute in self.signals().items()}
        images = []
        for number, (tokens, layout) in enumerate(zip(features, layouts, strict=True)):
            lazy: dict[str, Any] = {
                name: cache(partial(_arranged, compute, arrange, number)) for name, compute in computed.items()
            }
            images.append(VisualTokens(tokens, layout, project=self.projector, **lazy))
        return images

    def prune(
        self, features: Sequence[Tensor], layouts: Sequence[VisualLayout], arrange: Arrange, keeps: Sequence[Keep]
    ) -> list[Tensor]:
        """Return the kept tokens of each picture, ``[k, d]``; for the arguments see :meth:`images`."""
        images = self.images(features, layouts, arrange)
        return [kept_features(image, chosen) for image, chosen in zip(images, select(images, keeps), strict=True)]


class PatchPass(Pass):
    """One run of a :class:`Tower`: ``[tiles, patches]`` or ``[tiles, patches, width]``."""

    def __init__(self, tower: Tower, qkv: Call, layers: Sequence[Call]) -> None:
        super().__init__(tower.projector)
        self.tower = tower
        self._qkv, self._layers = qkv, layers

    @property
    def _outputs(self) -> list[Tensor]:
        # vLLM's SigLIP layers return a pair of their output and None.
        return [layer.output if isinstance(layer.output, Tensor) else layer.output[0] for layer in self._layers]

    def signals(self) -> dict[str, Callable[[], Tensor]]:
        signals = {
            "vision_attention": self.vision_attention,
            "vision_keys": self.vision_keys,
            "encoder_features": self.encoder_features,
            "tiles": self.tiles,
        }
        return signals | ({"cls_features": self.cls_features} if self.tower.has_cls else {})

    def vision_attention(self) -> Tensor:
        queries, keys, _ = self._qkv.output[0].chunk(3, dim=-1)
        attention = self.tower.attention
        own = patch_attention(queries, keys, attention.num_heads_per_partition, attention.scale, self.tower.has_cls)
        return over_ranks(self.tower.num_ranks, own)

    def vision_keys(self) -> Tensor:
        keys = self._qkv.output[0].chunk(3, dim=-1)[1][:, int(self.tower.has_cls) :].float()
        heads = keys.reshape(*keys.shape[:2], self.tower.attention.num_heads_per_partition, -1)
        return over_ranks(self.tower.num_ranks, heads.mean(dim=2))

    def encoder_features(self) -> Tensor:
        return torch.cat([output[:, int(self.tower.has_cls) :] for output in self._outputs], dim=-1)

    def cls_features(self) -> Tensor:
        cls = torch.cat([output[:, :1] for output in self._outputs], dim=-1)
        return cls.expand(-1, self._outputs[0].shape[1] - 1, -1)

    def tiles(self) -> Tensor:
        return tile_numbers(self._outputs[0][:, int(self.tower.has_cls) :])


def tile_numbers(rows: Tensor) -> Tensor:
    """Return the tile of each row, from 1: ``[tiles, rows, c]`` to ``[tiles, rows]``."""
    return torch.arange(1, len(rows) + 1, device=rows.device)[:, None].expand(-1, rows.shape[1])


def kept_features(image: VisualTokens, selection: Selection) -> Tensor:
    """Return the kept tokens, or the features with which a method replaces them: ``[k, d]``."""
    if selection.features is None:
        return image.features[selection.indices]
    return selection.features.to(image.features.dtype)


def select(images: Sequence[VisualTokens], keeps: Sequence[Keep]) -> list[Selection]:
    """Select the kept tokens of each picture by the method in the environment and the budget of each picture."""
    pruning = read_pruning()
    kept = [Selection(torch.arange(image.layout.num_tokens, device=image.features.device)) for image in images]
    counts = [
        kept_tokens(with_keep(pruning, keep), image.layout.num_tokens)
        for image, keep in zip(images, keeps, strict=True)
    ]
    dropping = [number for number, image in enumerate(images) if counts[number] < image.layout.num_tokens]
    if dropping:
        chosen = [images[number] for number in dropping]
        selections = pruning.method_instance.select_visual(chosen, [counts[number] for number in dropping])
        for number, selection in zip(dropping, selections, strict=True):
            kept[number] = with_dropped(images[number], selection) if pruning.merge else selection
    return kept


def over_ranks(num_ranks: int, values: Tensor) -> Tensor:
    """Return on each rank the mean over all ranks that share the heads of an attention module."""
    if num_ranks == 1:
        return values
    return tensor_model_parallel_all_gather(values[None], dim=0).mean(dim=0)


def llava_tower(model: Any) -> Tower:
    """Return the tower of a LLaVA model of vLLM."""
    selected = model.config.vision_feature_layer
    num_layers = model.config.vision_config.num_hidden_layers
    layers = model.vision_tower.vision_model.encoder.layers
    # hidden_states[k] is the output of layer k - 1.
    indices = [index if index >= 0 else num_layers + 1 + index for index in _listed(selected)]
    has_cls = model.config.vision_config.model_type == "clip_vision_model"
    return Tower([layers[index - 1] for index in indices], model.multi_modal_projector, has_cls)


def _listed(selected: int | Sequence[int]) -> Sequence[int]:
    return [selected] if isinstance(selected, int) else selected


def _arranged(compute: Callable[[], Tensor], arrange: Arrange, number: int) -> Tensor:
    values = compute()
    return arrange(values, number) if values.ndim == 3 else arrange(values[..., None], number)[:, 0]
