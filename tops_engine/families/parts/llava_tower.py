"""The vision tower of the LLaVA families: CLIP or SigLIP, hidden states of which feed a two-layer projector."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tops_engine.families.parts.clip_companion import ClipCompanions
from tops_engine.families.parts.vision_tower import (
    LayerAttention,
    PatchTower,
    TileLayers,
    middle_layer,
    selected_layers,
    shallow_layer,
)
from tops_engine.flops import VisionShape, patches_per_side

VISION_MODEL_TYPES = ("clip_vision_model", "siglip_vision_model")


def llava_tower(model: Any) -> PatchTower:
    """Return the vision tower of a ``Llava...ForConditionalGeneration`` object.

    SigLIP's pooling head is switched off: the projector reads the patches, and nothing reads the pooled output.
    """
    config = model.config
    without_pooling_head(model.model.vision_tower)
    vision, text_width = config.vision_config, config.text_config.hidden_size
    layers = model.model.vision_tower.encoder.layers
    feature_layers = selected_layers(layers, config.vision_feature_layer)
    has_cls = vision.model_type == "clip_vision_model"
    widths = (vision.hidden_size * len(feature_layers), text_width, text_width)
    return PatchTower(
        attention=LayerAttention.of(feature_layers[-1]),
        last_attention=LayerAttention.of(layers[-1]),
        middle_attention=LayerAttention.of(layers[middle_layer(len(layers))]),
        shallow_attention=LayerAttention.of(layers[shallow_layer(len(layers))]),
        shape=VisionShape.from_config(vision, has_cls, patches_per_side(vision) ** 2, widths),
        has_cls=has_cls,
        feature_layers=feature_layers,
        layers=TileLayers(_embedding(model.model.vision_tower), layers, LayerAttention.of),
    )


def _embedding(vision_tower: Any) -> Callable[[Tensor], Tensor]:
    """Return what makes the input of the first layer: [t, 3, height, width] -> [t, n, d]."""
    norm = getattr(vision_tower, "pre_layrnorm", None)  # CLIP's only, and spelt so there
    if norm is None:
        return vision_tower.embeddings
    return lambda tiles: norm(vision_tower.embeddings(tiles))


def without_pooling_head(vision_tower: Any) -> None:
    """Switch off the pooling head of SigLIP, whose output nothing reads."""
    for module in vision_tower.modules():
        if getattr(module, "use_head", False):
            module.use_head = False


def llava_companions(model: Any) -> ClipCompanions | None:
    """Return the loader of CLIP models for this checkpoint, or None if its vision tower is not CLIP's."""
    vision = model.config.vision_config
    if vision.model_type != "clip_vision_model":
        return None
    return ClipCompanions(model.name_or_path, vision.hidden_size)
