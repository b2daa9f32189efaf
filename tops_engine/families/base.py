"""What a model family is: how a checkpoint's prompts, pictures and text model look to the engine."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from tops_engine.errors import InvalidImage, InvalidInput, UnsupportedModel
from tops_engine.families.decoder import Decoder
from tops_engine.families.vision_signals import captured_calls, patch_attention
from tops_engine.flops import VisionShape
from tops_engine.layout import VisualLayout, VisualSpan
from tops_engine.messages import Conversation
from tops_engine.methods import VisualTokens


@dataclass(frozen=True)
class Prompt:
    """One conversation, ready for the model.

    Attributes
    ----------
    input_ids : int64 [N] on the CPU, every image expanded to its placeholder tokens.
    position_ids : int64 [1, N] on the CPU, or [3, N] (time, row, column) where the model numbers pictures in 3-D.
    spans : where each image's tokens lie.
    pixels : what the image processor made, on the CPU.
    images : the pictures themselves.
    """

    input_ids: Tensor
    position_ids: Tensor
    spans: list[VisualSpan]
    pixels: dict[str, Tensor]
    images: list[Image.Image]


class Family(ABC):
    """A loaded model of one architecture. A subclass is registered by defining it with its ``model_types``.

    Parameters
    ----------
    model : the ``...ForConditionalGeneration`` object.
    processor : the checkpoint's processor.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    registry: ClassVar[dict[str, type["Family"]]] = {}

    #: Vision towers the family was written for; others lay their patches out differently.
    vision_model_types: ClassVar[tuple[str, ...]] = ("clip_vision_model", "siglip_vision_model")

    #: Coordinates of a token's position: 1, or 3 (time, row, column) for a multimodal rotary embedding (mRoPE).
    position_axes: ClassVar[int] = 1

    #: The chat template of checkpoints that ship without one.
    default_chat_template: ClassVar[str | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Family.registry |= dict.fromkeys(cls.model_types, cls)

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self.decoder = Decoder(model.model.language_model, model.lm_head, self.position_axes)
        self.vision_shape = VisionShape.from_config(model.config)

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the generation config's list, else the tokenizer's."""
        ids = self.model.generation_config.eos_token_id
        ids = ids if ids is not None else self.tokenizer.eos_token_id
        return frozenset([ids] if isinstance(ids, int) else ids or [])

    def prepare(self, conversation: Conversation) -> Prompt:
        """Write the conversation in the checkpoint's chat template and expand its images.

        Raises
        ------
        InvalidInput
            If the template does not take the conversation, or placeholders and pictures do not match in number.
        """
        text = self._chat_text(conversation)
        token, images = self.processor.image_token, conversation.images
        if text.count(token) != len(images):
            raise InvalidInput(
                f"The prompt holds {text.count(token)} image placeholders ({token}) for {len(images)} pictures; "
                f"the text itself must not contain {token}, and the model's chat template must take pictures."
            )
        tokenizer = self.tokenizer
        starts_with_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        try:
            inputs = self.processor(
                text=[text], images=images or None, return_tensors="pt", add_special_tokens=not starts_with_bos
            )
        except (ValueError, ZeroDivisionError) as error:
            sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
            raise InvalidImage(f"The model's image processor refuses the pictures ({sizes}): {error}.") from error
        input_ids = inputs.pop("input_ids")[0]
        inputs.pop("attention_mask", None)
        pixels = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        layouts = self.layouts(images, pixels)
        spans = self._spans(input_ids, layouts)
        return Prompt(input_ids, self.position_ids(input_ids, pixels), spans, pixels, images)

    def position_ids(self, input_ids: Tensor, pixels: dict[str, Tensor]) -> Tensor:
        """Where the model's rotary embedding puts each token of a prompt: int64 [position_axes, N]."""
        return torch.arange(len(input_ids)).expand(self.decoder.position_axes, -1)

    @abstractmethod
    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        """Where each image's visual tokens lie in the picture, in prompt order."""

    @abstractmethod
    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Vision tower and projector: [n, d] for each image of all prompts, in order."""

    @abstractmethod
    def arrange(self, patch_values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Bring values of patches, [tiles, patches, c], into the order of the visual tokens: [n, c] for each image."""

    @abstractmethod
    def num_tiles(self, prompt: Prompt) -> int:
        """How many pictures the vision tower sees for this prompt."""

    def vision_flops(self, prompt: Prompt) -> int:
        """FLOPs of vision tower and projector for this prompt."""
        return self.vision_shape.flops(self.num_tiles(prompt)) if prompt.spans else 0

    def encode(self, prompts: Sequence[Prompt]) -> list[list[VisualTokens]]:
        """The visual tokens of each image of each prompt."""
        if not any(prompt.spans for prompt in prompts):
            return [[] for _ in prompts]
        module = self._feature_attention()
        with captured_calls(module.q_proj, module.k_proj, self.model.model.multi_modal_projector) as calls:
            features = self.project(prompts)

        @functools.cache
        def encoder_features() -> list[Tensor]:
            return self.arrange(calls[2].input, prompts)

        @functools.cache
        def vision_attention() -> list[Tensor]:
            queries, keys = calls[0].output, calls[1].output
            attention = patch_attention(queries, keys, module.num_heads, module.scale, self.has_cls)
            return [values[:, 0] for values in self.arrange(attention[..., None], prompts)]

        def image(index: int, layout: VisualLayout) -> VisualTokens:
            return VisualTokens(
                features[index], layout, lambda: encoder_features()[index], lambda: vision_attention()[index]
            )

        layouts = [span.layout for prompt in prompts for span in prompt.spans]
        images = iter([image(index, layout) for index, layout in enumerate(layouts)])
        return [[next(images) for _ in prompt.spans] for prompt in prompts]

    @property
    def has_cls(self) -> bool:
        """Whether the vision tower has a [CLS] token in front of its patches."""
        return self.model.config.vision_config.model_type == "clip_vision_model"

    def _feature_attention(self) -> Any:
        """The attention module of the vision layer whose output feeds the projector."""
        selected = self.model.config.vision_feature_layer
        selected = selected if isinstance(selected, int) else selected[-1]
        layers = self.model.model.vision_tower.encoder.layers
        # hidden_states[k] is the output of layer k - 1; counted from the end, both lists end with the last layer.
        return layers[selected - 1 if selected > 0 else selected].self_attn

    def _chat_text(self, conversation: Conversation) -> str:
        template = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template
        template = template or self.default_chat_template
        if template is None:
            raise UnsupportedModel("The checkpoint has no chat template; use an instruction-tuned one.")
        try:
            text = self.processor.apply_chat_template(
                conversation.messages, chat_template=template, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # jinja2 raises its own TemplateError for e.g. a role order the template refuses
            raise InvalidInput(f"The model's chat template does not take this conversation: {error}.") from error
        return str(text)

    def _spans(self, input_ids: Tensor, layouts: Sequence[VisualLayout]) -> list[VisualSpan]:
        positions = (input_ids == self.model.config.image_token_id).nonzero().flatten()
        counts = [layout.num_tokens for layout in layouts]
        if sum(counts) != len(positions):
            raise InvalidInput(
                f"The processor made {len(positions)} image tokens but the model makes {sum(counts)}; "
                "the checkpoint's processor config does not fit its model."
            )
        pieces = torch.split(positions, counts) if counts else ()
        return [VisualSpan(piece, layout) for piece, layout in zip(pieces, layouts, strict=True)]
