"""The models of the depth experiment, and how each is built from mini."""

import copy
from typing import NamedTuple

import torch
from transformers import AutoProcessor, GenerationConfig, LlavaForConditionalGeneration, LlavaProcessor

from tops_engine.mini import mini_path

HEAD_WIDTH = 32


class Shape(NamedTuple):
    """A model to train.

    Attributes
    ----------
    layers, width : of the language model. Width is a multiple of 32, the width of a head.
    seed : of the weights at the start and of the order of scenes and questions.
    drops_tokens : whether visual tokens are dropped in a part of the training, as in mini's own.
    reads_early : whether the picture is gone from some layer on in every step (`early.py`).
    """

    layers: int
    width: int
    seed: int
    drops_tokens: bool = True
    reads_early: bool = False

    @property
    def name(self) -> str:
        """Return the name of the model's folder, such as ``24-layers-seed-1``."""
        kind = "-early" if self.reads_early else "" if self.drops_tokens else "-all-tokens"
        return f"{self.layers}-layers-seed-{self.seed}{kind}"


#: In the order in which they are trained: what is there when the time is up is worth the most.
SHAPES = (
    Shape(24, 96, 1),
    Shape(16, 96, 1),
    Shape(16, 96, 1, drops_tokens=False),
    Shape(16, 96, 1, reads_early=True),
    Shape(8, 160, 1),
    Shape(24, 96, 2),
    Shape(16, 96, 2),
    Shape(24, 96, 3),
    Shape(16, 96, 3),
)


def mini() -> LlavaForConditionalGeneration:
    """Return mini in float32."""
    return LlavaForConditionalGeneration.from_pretrained(mini_path(), dtype=torch.float32)


def processor() -> LlavaProcessor:
    """Return mini's processor, which all models of the experiment share."""
    return AutoProcessor.from_pretrained(mini_path())


def build(shape: Shape) -> LlavaForConditionalGeneration:
    """Return a model with mini's frozen tower and an untrained language model of the given shape, float32.

    The first layer of the projector starts from the hidden units of mini's own projector that contribute most to its
    output. Everything else that is trained starts at random.
    """
    source = mini()
    config = copy.deepcopy(source.config)
    text = config.text_config
    text.num_hidden_layers, text.hidden_size = shape.layers, shape.width
    text.intermediate_size = -(-shape.width // 6) * 16
    text.num_attention_heads = text.num_key_value_heads = shape.width // HEAD_WIDTH
    torch.manual_seed(shape.seed)
    model = LlavaForConditionalGeneration(config)
    ids = {f"{name}_token_id": getattr(text, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model.generation_config = GenerationConfig(**ids, do_sample=False)
    model.model.vision_tower.load_state_dict(source.model.vision_tower.state_dict())
    model.model.vision_tower.requires_grad_(False)
    projector, own = model.model.multi_modal_projector, source.model.multi_modal_projector
    projector.linear_1.reset_parameters()
    projector.linear_2.reset_parameters()
    share = own.linear_2.weight.norm(dim=0) * own.linear_1.weight.norm(dim=1)
    units = share.topk(min(shape.width, len(share))).indices
    with torch.no_grad():
        projector.linear_1.weight[: len(units)] = own.linear_1.weight[units]
        projector.linear_1.bias[: len(units)] = own.linear_1.bias[units]
    return model
