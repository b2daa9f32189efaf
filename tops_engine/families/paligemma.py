"""PaliGemma and PaliGemma 2: one grid of SigLIP tokens a picture; the whole prompt attends both ways."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedConfig

from tops_engine.device.transfer import to_device
from tops_engine.families.base import Family
from tops_engine.families.decoder import Decoder
from tops_engine.families.parts.llava_tower import without_pooling_head
from tops_engine.families.parts.paligemma_processor import PaliGemmaProcessor
from tops_engine.families.parts.tower_parts import in_parts
from tops_engine.families.parts.vision_tower import LayerAttention, PatchTower, middle_layer, shallow_layer
from tops_engine.families.prompt import Prompt
from tops_engine.flops import VisionShape, patches_per_side
from tops_engine.grounding.formats import PALIGEMMA, Format
from tops_engine.media.layout import VisualLayout, grid_boxes

#: All pictures, and then the texts of all messages, a line each. The checkpoints have no template; they were trained on
#: a single question.
TEMPLATE = (
    "{% for message in messages if message['content'] is not string %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}{% endfor %}"
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '\n' }}{% endfor %}"
)


class PaliGemmaDecoder(Decoder):
    """Every token of the prompt, of text too, sees all of the prompt; the tokens of the answer are causal."""

    prompt_attends_both_ways = True

    def attends_both_ways(self, _layer_type: str) -> bool:
        return True

    def visible(self, layer_type: str, asking: Tensor, slots: Tensor, pictures: Tensor | None = None) -> Tensor:
        visible = super().visible(layer_type, asking, slots)
        if pictures is None:
            return visible
        # The window of sliding layers bounds what the answer sees, not what the prompt sees of itself.
        own, others = pictures[..., asking, None], pictures[..., None, :]
        return visible | ((own == others) & (others >= 0))

    def logits(self, hidden_states: Tensor) -> Tensor:
        scores = self.lm_head(self.final_norm(hidden_states))
        cap = getattr(self.text_model.config, "final_logit_softcapping", None)
        return (scores if cap is None else (scores / cap).tanh() * cap).float()


class PaliGemma(Family):
    """``PaliGemmaForConditionalGeneration``: google/paligemma2-3b-mix-448, google/paligemma-3b-mix-448 and the other
    sizes.

    The tower has no [CLS]: relevance is the mean attention that a patch receives in its last layer. PaliGemma 2 runs
    with transformers' plain attention, as the fused kernel of torch does not cap scores.
    """

    model_types = ("paligemma",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "paligemma": (
            *(f"google/paligemma-3b-mix-{side}" for side in (224, 448)),
            *(f"google/paligemma2-{size}-mix-448" for size in ("3b", "10b", "28b")),
        )
    }
    grounding: ClassVar[dict[str, Format]] = {"paligemma": PALIGEMMA}
    vision_model_types = ("siglip_vision_model",)
    one_size = True
    processor_class = PaliGemmaProcessor
    decoder_class = PaliGemmaDecoder
    default_chat_template = TEMPLATE
    tower: PatchTower

    @classmethod
    def load_model(cls, source: str, **options: Any) -> tuple[Any, list[str]]:
        config, _ = PreTrainedConfig.get_config_dict(source, revision=options.get("revision"))
        if config.get("text_config", {}).get("model_type") == "gemma2" and options["attn_implementation"] == "sdpa":
            options["attn_implementation"] = {"text_config": "eager", "vision_config": "sdpa"}
        return super().load_model(source, **options)

    def build_tower(self) -> PatchTower:
        vision, tower = self.model.config.vision_config, self.model.model.vision_tower
        without_pooling_head(tower)
        layers = tower.encoder.layers
        numbers = -1, middle_layer(len(layers)), shallow_layer(len(layers))
        last, middle, shallow = (LayerAttention.of(layers[number]) for number in numbers)
        widths = (vision.hidden_size, vision.projection_dim)
        return PatchTower(last, last, middle, shallow, VisionShape.from_config(vision, False, self.side**2, widths))

    @property
    def side(self) -> int:
        """Tokens along a side of a picture."""
        return patches_per_side(self.model.config.vision_config)

    @property
    def projector(self) -> nn.Module:
        return self.model.model.multi_modal_projector

    def position_ids(self, input_ids: Tensor, pixels: dict[str, Tensor]) -> Tensor:
        # These models count from 1.
        return super().position_ids(input_ids, pixels) + 1

    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        grid = (self.side, self.side)
        return [VisualLayout(grid_boxes(*grid), torch.zeros(self.side**2).long(), (grid,)) for _ in images]

    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        pixel_values = torch.cat([prompt.pixels["pixel_values"] for prompt in prompts if prompt.spans])
        pixel_values = to_device(pixel_values, self.decoder.device, self.decoder.dtype)
        model = self.model.model
        return list(in_parts(lambda part: model.get_image_features(part, return_dict=True).pooler_output, pixel_values))

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        return list(values)

    def vision_flops(self, prompt: Prompt) -> int:
        return self.tower.shape.flops(len(prompt.images))
