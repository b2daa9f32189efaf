"""What a model family is: how a checkpoint's prompts, pictures and text model look to the engine."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from tops_engine.conversation.messages import Conversation
from tops_engine.device.transfer import to_device
from tops_engine.errors import InvalidImage, UnsupportedModel
from tops_engine.families.decoder import Decoder
from tops_engine.families.parts.known_pictures import KnownPictures
from tops_engine.families.parts.vision_signals import Call, captured_calls
from tops_engine.families.prompt import Prompt, chat_text, check_placeholders, split_positions
from tops_engine.media.layout import VisualLayout, VisualSpan
from tops_engine.media.videos import Video
from tops_engine.methods import ClipEmbeddings, VisualTokens
from tops_engine.registry import Registry

#: The model families by the model types they run.
FAMILIES: Registry[type["Family"]] = Registry("family", "tops_engine.families")


class Family(ABC):
    """A loaded model of one architecture.

    Defining a subclass registers it in :data:`FAMILIES`. It needs ``model_types`` and ``checkpoints`` of its own and a
    docstring. ``class Base(Family, register=False)`` defines a class that is no family by itself.

    What differs between families is overridden: how a checkpoint is recognised and loaded (:meth:`matches`,
    :meth:`load_model`, ``processor_class``), where the parts of the model are (:attr:`text_model`, :attr:`projector`),
    where tokens lie in the picture (:meth:`layouts`), how they are made (:meth:`project`, :meth:`arrange`), and what
    the vision tower knows of them (:meth:`token_attention`, :meth:`signals`).

    Parameters
    ----------
    model : the ``...ForConditionalGeneration`` object.
    processor : the checkpoint's processor.
    """

    #: The ``model_type`` in the ``config.json`` of its checkpoints.
    model_types: ClassVar[tuple[str, ...]] = ()

    #: Some of the published checkpoints that it loads, by model type.
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {}

    #: Whether its vision tower is CLIP's, so that methods can compare patches with the question in CLIP's space.
    clip_tower: ClassVar[bool] = False

    #: Vision towers the family was written for, where its checkpoints may come with others.
    vision_model_types: ClassVar[tuple[str, ...]] = ()

    #: Reads the checkpoint's processor; None takes the class that the checkpoint names.
    processor_class: ClassVar[Any] = None

    #: Whether the model answers questions about videos.
    takes_videos: ClassVar[bool] = False

    #: The decoder: rotary embedding by layer, mask rule, and what each layer keeps.
    decoder_class: ClassVar[type[Decoder]] = Decoder

    #: Coordinates of a token's position: 1, or 3 (time, row, column) for a multimodal rotary embedding (mRoPE).
    position_axes: ClassVar[int] = 1

    #: The chat template of checkpoints that ship without one.
    default_chat_template: ClassVar[str | None] = None

    def __init_subclass__(cls, register: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if register:
            # Not inherited ones: a subclass runs other checkpoints.
            model_types = cls.__dict__.get("model_types", ())
            published = cls.__dict__.get("checkpoints", {})
            named = all(published.get(model_type) for model_type in model_types)
            FAMILIES.add(cls, model_types, checkpoints=published if named else None)

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self._pictures = KnownPictures(processor.image_processor)
        processor.image_processor = self._pictures
        self.decoder = self.decoder_class(self.text_model, model.lm_head, self.position_axes)

    @classmethod
    def matches(cls, config: dict[str, Any]) -> bool:
        """Whether this family runs the checkpoint with that ``config.json``."""
        # "mm_vision_tower" is only in the files of the original LLaVA code, whose weights have other names.
        return config.get("model_type") in cls.model_types and "mm_vision_tower" not in config

    @classmethod
    def load_model(cls, source: str, **options: Any) -> tuple[Any, list[str]]:
        """Load the weights; returns the model and the names of weights that the checkpoint lacks.

        Parameters
        ----------
        source : hub id or folder.
        options : revision, dtype, device_map, attn_implementation, quantization_config, as transformers takes them.
        """
        model, info = AutoModelForImageTextToText.from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
        return model, sorted(info["missing_keys"])

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        """Load image processor, tokenizer and chat template."""
        processor_class = cls.processor_class or AutoProcessor
        return processor_class.from_pretrained(source, revision=revision, trust_remote_code=False)

    @property
    def text_model(self) -> Any:
        """The inner text model: layers, norm, rotary embedding, token table."""
        return self.model.model.language_model

    @property
    @abstractmethod
    def projector(self) -> torch.nn.Module:
        """The module that brings vision features to the text model's width, one row in for each row out."""

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
        UnsupportedModel
            If there is a video and the model does not take videos.
        """
        if conversation.videos and not self.takes_videos:
            raise UnsupportedModel("This model does not take videos; give it frames as pictures, or use another model.")
        text = chat_text(self.processor, conversation, self.default_chat_template)
        images, videos = conversation.images, conversation.videos
        check_placeholders(text, self.processor.image_token, len(images), "pictures")
        pixels: dict[str, Tensor] = {}
        layouts: list[VisualLayout] = []
        if self.video_token is not None:
            check_placeholders(text, self.video_token, len(videos), "videos")
        if videos:
            pixels |= self.read_videos(videos)
            layouts += self.video_layouts(videos, pixels)
            first, *others = text.split(str(self.video_token))
            written = map(self.video_text, videos, layouts)
            text = first + "".join(part for pair in zip(written, others, strict=True) for part in pair)
        tokenizer = self.tokenizer
        starts_with_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        try:
            inputs = self.processor(
                text=[text],
                images=self.for_processor(images) or None,
                return_tensors="pt",
                add_special_tokens=not starts_with_bos,
            )
        except (ValueError, ZeroDivisionError) as error:
            sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
            raise InvalidImage(f"The model's image processor refuses the pictures ({sizes}): {error}.") from error
        input_ids = inputs.pop("input_ids")[0]
        inputs.pop("attention_mask", None)
        pixels |= {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        spans = self._spans(input_ids, self.layouts(images, pixels), layouts)
        positions = self.position_ids(input_ids, pixels)
        digests = self._pictures.digests(images)
        return Prompt(input_ids, positions, spans, pixels, images, digests, conversation.question, videos)

    def for_processor(self, images: Sequence[Image.Image]) -> Sequence[Any]:
        """The pictures of one conversation as the processor takes them."""
        return images

    def position_ids(self, input_ids: Tensor, pixels: dict[str, Tensor]) -> Tensor:
        """Where the model's rotary embedding puts each token of a prompt: int64 [position_axes, N]."""
        return torch.arange(len(input_ids)).expand(self.decoder.position_axes, -1)

    @abstractmethod
    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        """Where each image's visual tokens lie in the picture, in prompt order."""

    @property
    def video_token(self) -> str | None:
        """What stands for a video, and for each of its visual tokens, in the text; None if there is no such token."""
        token_id = getattr(self.model.config, "video_token_id", None)
        return None if token_id is None else str(self.tokenizer.convert_ids_to_tokens(token_id))

    def read_videos(self, videos: Sequence[Video]) -> dict[str, Tensor]:
        """What the model's forward takes for videos; their frames are chosen already."""
        raise NotImplementedError

    def video_layouts(self, videos: Sequence[Video], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        """Where each video's visual tokens lie in its frames, in prompt order; ``pixels`` is of :meth:`read_videos`."""
        raise NotImplementedError

    def video_text(self, _video: Video, layout: VisualLayout) -> str:
        """What is written in the place of a video's placeholder: one for each of its visual tokens."""
        return str(self.video_token) * layout.num_tokens

    @abstractmethod
    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Vision tower and projector: [n, d] for each picture and video of all prompts, in the order of their spans."""

    def project_rows(self, rows: Tensor) -> Tensor:
        """The projector on rows like those it sees (``encoder_features``): [k, c] -> [k, d]."""
        return self.projector(rows)

    @abstractmethod
    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Bring rows as the projector sees them, [tiles, rows, c], into the order of the visual tokens.

        Returns
        -------
        [n, c] for each picture and video of all prompts, in the order of their spans; 0 for tokens that are none of
        these rows.
        """

    @abstractmethod
    def vision_flops(self, prompt: Prompt) -> int:
        """FLOPs of vision tower and projector for this prompt."""

    @abstractmethod
    def attention_taps(self) -> Sequence[torch.nn.Module]:
        """The modules that :meth:`token_attention` listens to, of the vision layer that feeds the projector."""

    @abstractmethod
    def token_attention(self, taps: Sequence[Call]) -> Tensor:
        """How much attention each row that the projector sees gets in the vision layer that feeds it.

        Parameters
        ----------
        taps : what the modules of :meth:`attention_taps` got and made.

        Returns
        -------
        float32 [tiles, rows], mean over heads: from [CLS] or, where there is none, from all patches on average.
        """

    def signal_taps(self) -> Sequence[torch.nn.Module]:
        """The modules that :meth:`signals` listens to."""
        return ()

    def signals(self, attention_taps: Sequence[Call], signal_taps: Sequence[Call]) -> dict[str, Callable[[], Tensor]]:
        """More of what :class:`VisualTokens` may hold, by the name there, where this family can compute it.

        Each function gives [tiles, rows] or [tiles, rows, c], with the rows that the projector sees.
        """
        return {}

    def encode(self, prompts: Sequence[Prompt]) -> list[list[VisualTokens]]:
        """The visual tokens of each image of each prompt."""
        if not any(prompt.spans for prompt in prompts):
            return [[] for _ in prompts]
        listening, more = self.attention_taps(), self.signal_taps()
        with captured_calls(self.projector, *listening, *more) as (projector, *calls):
            features = self.project(prompts)
        taps, more_taps = calls[: len(listening)], calls[len(listening) :]

        def tiles() -> Tensor:
            num_tiles, num_rows = projector.input.shape[:2]
            return torch.arange(1, num_tiles + 1, device=features[0].device)[:, None].expand(-1, num_rows)

        signals = {
            "encoder_features": lambda: projector.input,
            "vision_attention": lambda: self.token_attention(taps),
            "tiles": tiles,
            **self.signals(taps, more_taps),
        }
        arranged = {name: self._arranged(compute, prompts) for name, compute in signals.items()}
        question_embeddings = functools.cache(self._embed_question)

        def image(index: int, layout: VisualLayout, question: str) -> VisualTokens:
            lazy: dict[str, Any] = {name: partial(_item, images, index) for name, images in arranged.items()}
            return VisualTokens(
                features[index],
                layout,
                project=self.project_rows,
                question_embeddings=partial(question_embeddings, question),
                clip_embeddings=lambda model: self.clip_embeddings(model, lazy["encoder_features"](), question),
                **lazy,
            )

        spans = [(span.layout, prompt.question) for prompt in prompts for span in prompt.spans]
        images = iter([image(index, layout, question) for index, (layout, question) in enumerate(spans)])
        return [[next(images) for _ in prompt.spans] for prompt in prompts]

    def clip_embeddings(self, model: str | None, patches: Tensor, question: str) -> ClipEmbeddings:
        """Patch features [n, c], as they feed the projector, and the question, as a CLIP model sees them.

        Raises
        ------
        UnsupportedModel
            If the vision tower is not CLIP's.
        """
        raise UnsupportedModel(
            "The vision tower is not CLIP's, so no CLIP model tells what fits the question; use another method, "
            "or cdpruner with text_space=llm."
        )

    def _arranged(self, compute: Callable[[], Tensor], prompts: Sequence[Prompt]) -> Callable[[], list[Tensor]]:
        @functools.cache
        def images() -> list[Tensor]:
            values = compute()
            if values.ndim == 3:
                return self.arrange(values, prompts)
            return [image[:, 0] for image in self.arrange(values[..., None], prompts)]

        return images

    def _embed_question(self, question: str) -> Tensor:
        ids = self.tokenizer(question, add_special_tokens=False, return_tensors="pt").input_ids[0]
        return self.decoder.embed(to_device(ids, self.decoder.device))

    def forget_pictures(self) -> None:
        """Drop what is remembered of the pictures asked about: a known one need not be scaled and cut again."""
        self._pictures.forget()

    def to(self, device: torch.device) -> None:
        """Move all weights."""
        self.model.to(device)

    def _spans(
        self, input_ids: Tensor, images: Sequence[VisualLayout], videos: Sequence[VisualLayout]
    ) -> list[VisualSpan]:
        """The spans of pictures and videos, in the order of the prompt."""
        spans = split_positions(input_ids, self.model.config.image_token_id, images, "image")
        if videos:
            spans += split_positions(input_ids, self.model.config.video_token_id, videos, "video")
        return sorted(spans, key=lambda span: int(span.positions[0]))


def _item(images: Callable[[], list[Tensor]], index: int) -> Tensor:
    return images()[index]
