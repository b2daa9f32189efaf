"""The contract of a model family: how a checkpoint's prompts, pictures and text model look to the engine."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from tops_engine.errors import UnsupportedModel
from tops_engine.families.decoder import Decoder
from tops_engine.families.parts.clip_companion import ClipCompanions
from tops_engine.families.parts.known_pictures import KnownPictures
from tops_engine.families.parts.picture_steps import with_picture_steps
from tops_engine.families.parts.vision_signals import Call, captured_calls, tile_numbers
from tops_engine.families.parts.vision_tower import Signals, VisionTower
from tops_engine.families.prompt import Prompt
from tops_engine.families.prompt_writer import PromptWriter
from tops_engine.families.visual_tokens import TowerRun, reduced_tokens, visual_tokens
from tops_engine.grounding.formats import Format, Size
from tops_engine.grounding.places import Places
from tops_engine.methods import ClipEmbeddings, VisualTokens
from tops_engine.registry import Registry
from tops_engine.tower import WHOLE_TOWER, Dedup, TowerOptions

#: The model families by the model types they run.
FAMILIES: Registry[type["Family"]] = Registry("family", "tops_engine.families")


class Family(PromptWriter):
    """A loaded model of one architecture.

    Defining a subclass registers it in :data:`FAMILIES`. It needs ``model_types`` and ``checkpoints`` of its own and a
    docstring. ``class Base(Family, register=False)`` defines a class that is no family by itself.

    A family overrides what differs between architectures: how a checkpoint is recognised and loaded (:meth:`matches`,
    :meth:`load_model`, :meth:`load_processor`), where the modules are (:attr:`text_model`, :attr:`projector`), where
    visual tokens lie in the picture (:meth:`layouts`), how they are made (:meth:`project`, :meth:`arrange`), and which
    signals the vision tower gives (:meth:`build_tower`). Everything that several families share is a part that they
    hold (``families/parts``), so that a family has at most one base class of its own between itself and this one.

    Parameters
    ----------
    model : the ``...ForConditionalGeneration`` object.
    processor : the checkpoint's processor.
    """

    #: The ``model_type`` in the ``config.json`` of its checkpoints.
    model_types: ClassVar[tuple[str, ...]] = ()

    #: Some of the published checkpoints that the family loads, by model type.
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {}

    #: Whether the vision tower is CLIP's, so that methods can compare patches with the question in CLIP's space.
    clip_tower: ClassVar[bool] = False

    #: Model types of the vision towers that the family supports; empty if its checkpoints have only one kind.
    vision_model_types: ClassVar[tuple[str, ...]] = ()

    #: Model types of the language models that the family supports; empty if its checkpoints have only one kind.
    text_model_types: ClassVar[tuple[str, ...]] = ()

    #: The class that reads the checkpoint's processor; None takes the class that the checkpoint names.
    processor_class: ClassVar[Any] = None

    #: The oldest version of transformers that runs the model; None if that is the oldest that the engine needs.
    oldest_transformers: ClassVar[str | None] = None

    #: The decoder: rotary embedding by layer, mask rule, and what each layer keeps.
    decoder_class: ClassVar[type[Decoder]] = Decoder

    #: Coordinates of a token's position: 1, or 3 (time, row, column) for a multimodal rotary embedding (mRoPE).
    position_axes: ClassVar[int] = 1

    #: How the models write boxes and points, by model type; others were not trained to, or it is not documented.
    grounding: ClassVar[dict[str, Format]] = {}

    #: What the vision tower can encode once.
    dedups: ClassVar[tuple[Dedup, ...]] = ()

    #: Why no patches can be dropped inside the vision tower, as a clause behind "the vision tower"; None if they can.
    uncut_because: ClassVar[str | None] = "whose layers the engine does not run one by one"

    #: Whether the projector runs on tiles that are equal to others, too.
    projects_twins: ClassVar[bool] = False

    #: Loads CLIP models beside the checkpoint. Families whose vision tower is CLIP's set it.
    companions: ClipCompanions | None = None

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
        self._pictures = KnownPictures(with_picture_steps(processor.image_processor))
        processor.image_processor = self._pictures
        self.decoder = self.decoder_class(self.text_model, model.lm_head, self.position_axes)
        self._pictures.scale_on(self.decoder.device)
        self.tower = self.build_tower()

    @classmethod
    def matches(cls, config: dict[str, Any]) -> bool:
        """Return whether this family runs the checkpoint with that ``config.json``."""
        # Only checkpoints in the layout of the original LLaVA code have this entry. Their weights have other names.
        return config.get("model_type") in cls.model_types and "mm_vision_tower" not in config

    @classmethod
    def load_model(cls, source: str, **options: Any) -> tuple[Any, list[str]]:
        """Load the weights.

        Parameters
        ----------
        source : hub id or folder.
        options : revision, dtype, device_map, attn_implementation, quantization_config, as transformers takes them.

        Returns
        -------
        The model, and the names of the weights that the checkpoint lacks.
        """
        model, info = AutoModelForImageTextToText.from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
        return model, sorted(info["missing_keys"])

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        """Load the image processor, the tokenizer and the chat template."""
        processor_class = cls.processor_class or AutoProcessor
        return processor_class.from_pretrained(source, revision=revision, trust_remote_code=False)

    @property
    def text_model(self) -> Any:
        """The inner text model: layers, norm, rotary embedding, token table."""
        return self.model.model.language_model

    @property
    @abstractmethod
    def projector(self) -> torch.nn.Module:
        """The module that brings vision features to the text model's width, one row out for each row in."""

    @abstractmethod
    def build_tower(self) -> VisionTower:
        """Return the part that reads the vision tower's signals."""

    @abstractmethod
    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Run vision tower and projector.

        Returns
        -------
        [n, d] for each picture and video of all prompts, in the order of their spans.
        """

    def project_rows(self, rows: Tensor) -> Tensor:
        """Run the projector on rows like those it sees (``encoder_features``): [k, c] -> [k, d]."""
        return self.projector(rows)

    @abstractmethod
    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Bring rows as the projector sees them, [tiles, rows, c], into the order of the visual tokens.

        Returns
        -------
        [n, c] for each picture and video of all prompts, in the order of their spans; 0 for tokens that show no row.
        """

    def arrange_features(self, rows: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Do what :meth:`arrange` does with the features that feed the projector, where weights make rows of them."""
        return self.arrange(rows, prompts)

    @abstractmethod
    def vision_flops(self, prompt: Prompt) -> int:
        """Return the FLOPs of vision tower and projector for this prompt."""

    def signals(self, projector: Call, taps: Sequence[Call]) -> Signals:
        """Return what :class:`VisualTokens` may hold of a run of the vision tower, under the names there.

        Parameters
        ----------
        projector : the call of the projector in that run.
        taps : the calls of the tower's :meth:`~VisionTower.taps`.

        Returns
        -------
        Functions that compute [tiles, rows] or [tiles, rows, c], with the rows that the projector sees.
        """
        return {
            "encoder_features": lambda: projector.input,
            "tiles": lambda: tile_numbers(projector.input),
            **self.tower.signals(taps),
        }

    def check_tower(self, options: TowerOptions) -> None:
        """Check that the vision tower can leave out what the options say.

        Raises
        ------
        UnsupportedModel
            If it cannot.
        InvalidInput
            If it does not have the layer.
        """
        if options.dedup != "none" and options.dedup not in self.dedups:
            instead = "use dedup=exact" if self.dedups else "leave dedup out"
            raise UnsupportedModel(
                f"The engine cannot run this model's vision tower with dedup={options.dedup}; {instead}."
            )
        if options.keep < 1:
            if self.uncut_because is not None:
                raise UnsupportedModel(
                    f"tower_keep cannot drop patches inside this model's vision tower, {self.uncut_because}; "
                    "leave it out."
                )
            self.tower_run(options)

    def tower_run(self, options: TowerOptions) -> TowerRun:
        """Return a run of the vision tower that leaves something out.

        Raises
        ------
        InvalidInput
            If the tower does not have the layer.
        """
        raise NotImplementedError

    def project_run(self, prompts: Sequence[Prompt], run: Any) -> list[Tensor]:
        """Do what :meth:`project` does in such a run; the result is 0 for tokens that the tower dropped."""
        raise NotImplementedError

    def encode(self, prompts: Sequence[Prompt], options: TowerOptions = WHOLE_TOWER) -> list[list[VisualTokens]]:
        """Return the visual tokens of each picture and video of each prompt.

        Parameters
        ----------
        options : what the vision tower leaves out, as :meth:`check_tower` allows.
        """
        if not any(prompt.spans for prompt in prompts):
            return [[] for _ in prompts]
        return self.encode_run(prompts, None if options == WHOLE_TOWER else self.tower_run(options))

    def encode_run(self, prompts: Sequence[Prompt], run: TowerRun | None) -> list[list[VisualTokens]]:
        """Return the visual tokens of prompts with pictures, from a run of the tower; None is a whole run."""
        with captured_calls(self.projector, *self.tower.taps()) as (projector, *taps):
            features = self.project(prompts) if run is None else self.project_run(prompts, run)
        signals = self.signals(projector, taps)
        if run is None:
            return visual_tokens(self, prompts, features, signals)
        return reduced_tokens(self, prompts, features, signals, run)

    def clip_embeddings(self, model: str | None, patches: Tensor, question: str) -> ClipEmbeddings:
        """Return patch features [n, c], as they feed the projector, and the question in the space of a CLIP model.

        Parameters
        ----------
        model : hub id or folder of the CLIP model, or None for the checkpoint's own.

        Raises
        ------
        UnsupportedModel
            If the vision tower is not CLIP's, or if the CLIP model does not fit it.
        """
        if self.companions is None:
            raise UnsupportedModel(
                "The vision tower is not CLIP's, so patches and question cannot be compared by a CLIP model; use "
                "another method, or cdpruner with text_space=llm."
            )
        return self.companions.embeddings(model, patches, question)

    def places(self, prompt: Prompt, text: str) -> Places:
        """Return the boxes and points that an answer to a prompt names, in the pixels of the original pictures.

        They are read from the text, and scaled by the sizes of the whole pictures: pruning changes neither.

        Parameters
        ----------
        text : the answer, with its special tokens.
        """
        grounding = self.grounding.get(self.model.config.model_type)
        if grounding is None or not prompt.sizes:
            return Places(sizes=tuple(prompt.sizes))
        scaled = self.processed_sizes(prompt) if grounding.full is None else [(grounding.full,) * 2] * len(prompt.sizes)
        return grounding.read(prompt.continued_text + text, prompt.sizes, scaled)

    def processed_sizes(self, prompt: Prompt) -> list[Size]:
        """Return width and height of each picture of a prompt, in pixels, as the image processor scaled it.

        Only families whose models write boxes in these pixels have it.
        """
        raise NotImplementedError

    def forget_pictures(self) -> None:
        """Drop the scaled and cut pictures that are kept for questions about the same pictures."""
        self._pictures.forget()

    def limit_pictures(self, max_bytes: int) -> None:
        """Set how many bytes the results of the image processor for earlier pictures may take."""
        self._pictures.limit(max_bytes)

    @property
    def picture_bytes(self) -> int:
        """Bytes that the results of the image processor for earlier pictures take."""
        return self._pictures.num_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights and buffers."""
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))

    def to(self, device: torch.device) -> None:
        """Move all weights."""
        self.model.to(device)
        self._pictures.scale_on(device)
        if self.companions is not None:
            self.companions.to(device)
