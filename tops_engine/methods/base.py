"""What a pruning method is: one frozen pydantic class whose fields are its options.

A method sees tensors and layouts only, never a model. It returns :class:`Selection`s; the engine applies them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field

from tops_engine import selection
from tops_engine.budget import Keep, Preset, Stage, stages_for
from tops_engine.device.lazy import Tensor
from tops_engine.errors import TopsError, UnsupportedModel
from tops_engine.media.layout import VisualLayout
from tops_engine.methods.file_option import NAMES_FILE
from tops_engine.registry import Registry

Positions = Literal["contiguous", "original"]

#: The option of methods that read the question with CLIP's text tower.
Clip = Annotated[
    str | None,
    NAMES_FILE,
    Field(
        description="CLIP model that reads the question with its text tower: a hub id or folder of the model that the "
        "vision tower is from, such as openai/clip-vit-large-patch14-336 for LLaVA. Unset takes the one that the "
        "checkpoint brings along (mini)."
    ),
]


def unavailable(what: str) -> Callable[..., Any]:
    """In the place of a signal that a model family does not give: a method that asks for it cannot run there."""

    def refuse(*_: object) -> Any:
        raise UnsupportedModel(f"This model gives no {what}, which the pruning method needs; choose another method.")

    return refuse


class ClipEmbeddings(NamedTuple):
    """Picture and question in the space of a CLIP model: ``patches`` float32 [n, e], ``question`` float32 [e]."""

    patches: Tensor
    question: Tensor


@dataclass(frozen=True)
class VisualTokens:
    """One image, right after the projector (stage I).

    All but features and layout is computed when a method asks for it, once for all images of a batch. What a family
    does not give raises :class:`UnsupportedModel`, so that a new family can start with what comes before the defaults.

    Attributes
    ----------
    features : [n, d] projected tokens, in prompt order.
    layout : where each token lies in the picture.
    encoder_features : [n, c], what the projector made the tokens of: the vision tower's patch features in the same
        order; 0 for tokens that are not patches.
    vision_attention : computes the attention each token's patch gets from [CLS] in the vision layer that feeds the
        projector: float32 [n], mean over heads; mean attention received where the encoder has no [CLS]; 0 for tokens
        that are not patches.
    deepstack : [n, d] for each of the first decoder layers: what the model adds to these tokens after that layer, for
        families that feed features of several vision layers (Qwen3-VL). It follows the kept tokens.
    vision_keys : the patches' keys in the same vision layer, unscaled: float32 [n, head_dim], mean over heads.
    last_layer_attention, last_layer_keys : attention (as above) and keys of the vision tower's last layer, taken as a
        single head: float32 [n] and [n, width].
    cls_features : [n, c], what the vision layer that feeds the projector makes of [CLS] in the tile that each token's
        patch belongs to; None where there is no [CLS] or the projector could not read it.
    tiles : int64 [n], the same number above 0 for tokens of the same tile (a picture that the vision tower saw); 0 for
        tokens that are not patches.
    project : the projector: [k, c] like ``encoder_features`` -> [k, d].
    question_embeddings : the language model's embeddings of the question's tokens, [t, d].
    clip_embeddings : patches and question as a CLIP model sees them, given its hub id or folder, or None for the one
        that the checkpoint brings along.
    """

    features: Tensor
    layout: VisualLayout
    encoder_features: Callable[[], Tensor]
    vision_attention: Callable[[], Tensor]
    deepstack: Sequence[Tensor] = ()
    vision_keys: Callable[[], Tensor] = field(default_factory=partial(unavailable, "vision keys"))
    last_layer_attention: Callable[[], Tensor] = field(default_factory=partial(unavailable, "last vision layer"))
    last_layer_keys: Callable[[], Tensor] = field(default_factory=partial(unavailable, "last vision layer"))
    cls_features: Callable[[], Tensor] | None = None
    tiles: Callable[[], Tensor] = field(default_factory=partial(unavailable, "tiles"))
    project: Callable[[Tensor], Tensor] = field(default_factory=partial(unavailable, "projector"))
    question_embeddings: Callable[[], Tensor] = field(default_factory=partial(unavailable, "question embeddings"))
    clip_embeddings: Callable[[str | None], ClipEmbeddings] = field(
        default_factory=partial(unavailable, "CLIP features")
    )


Rows = Literal["text", "last", "image"]


class AttentionRows(Protocol):
    """Computes what some tokens pay the image's remaining tokens, from a layer's own q/k projections.

    Only the rows asked for are computed, each an exact softmax over everything its token may see.
    """

    def __call__(
        self, rows: Rows, layer: Literal["next", "previous"] = "next", heads: Literal["mean", "max"] = "mean"
    ) -> Tensor:
        """The rows of the text tokens after the image, of the prompt's last token, or of the image's own tokens.

        Parameters
        ----------
        layer : the one about to run, or the one that ran last (its keys are known: cheaper).
        heads : their mean, or the largest of them element by element.

        Returns
        -------
        float32 [number of rows, n]
        """


@dataclass(frozen=True)
class LayerTokens:
    """The remaining visual tokens of one image at the input of a decoder layer (stage II).

    Attributes
    ----------
    hidden_states : [n, d] at the layer's input.
    kept : int64 [n], which of the image's N tokens these are (indices into its layout).
    layout : of the whole, unpruned image.
    attention : see :class:`AttentionRows`.
    text_similarity : computes the dot products of the image's N projected tokens (before anything was pruned) with the
        embeddings of the t text tokens after the image: float32 [N, t].
    normed_states : computes the hidden states of these n tokens, then of the t text tokens after the image, after the
        norm that follows the last layer: [n + t, d].
    previous_keys : the keys of the same tokens in the layer that ran last, rotated, heads side by side: [n + t, h].
    """

    hidden_states: Tensor
    kept: Tensor
    layout: VisualLayout
    attention: AttentionRows
    text_similarity: Callable[[], Tensor]
    normed_states: Callable[[], Tensor]
    previous_keys: Callable[[], Tensor]


@dataclass(frozen=True)
class Selection:
    """Which tokens of one image stay.

    Attributes
    ----------
    indices : int64 [k], ascending, into the tokens the method was shown.
    order : the same indices in the order the method chose them, where it has one.
    features : [k, d] to put in the place of the kept tokens, for methods that merge.
    """

    indices: Tensor
    order: Tensor | None = None
    features: Tensor | None = None

    @classmethod
    def in_order(cls, order: Tensor) -> Self:
        """Tokens as they were chosen one after the other: int64 [k]."""
        return cls(order.sort().values, order)

    @classmethod
    def highest(cls, scores: Tensor, count: int) -> Self:
        """The ``count`` highest of scores [n]; the lowest index of equal ones."""
        return cls.in_order(selection.top_tokens(scores, count))


#: The pruning methods by name.
METHODS: Registry[type["Method"]] = Registry("method", "tops_engine.methods")


class Method(BaseModel):
    """Base class of pruning methods; the fields of a subclass are the options of its method.

    Defining a subclass registers it in :data:`METHODS`. It needs a ``name`` of its own, a ``source`` and a docstring.
    ``class Base(Method, register=False)`` defines a class that is no method by itself.

    Attributes
    ----------
    name : what users write to choose the method.
    source : the paper, or where else the method comes from.
    default_positions : how position ids are numbered after pruning where the user does not say.
    presets : what the source ran, by the names that ``schedule`` takes.
    first_stage_options : the options under which a method that prunes at both stages prunes only before the language
        model, for servers that cannot prune between layers.
    reads_last_layer : whether stage I reads the last layer of the vision tower, which vLLM does not load.
    waits_for_device : whether a selection depends on values in a way that makes the host wait for the GPU.
    reads_question : whether stage I depends on the question, so that its selection cannot be reused for another
        question about the picture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    default_positions: ClassVar[Positions] = "contiguous"
    presets: ClassVar[Mapping[str, Preset]] = {}
    first_stage_options: ClassVar[Mapping[str, Any]] = {}
    reads_question: ClassVar[bool] = False
    reads_last_layer: ClassVar[bool] = False
    waits_for_device: ClassVar[bool] = False

    def __init_subclass__(cls, register: bool = True, **kwargs: Any) -> None:
        # Python passes the keyword here first; pydantic passes it on once the class is complete.
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(cls, register: bool = True, **kwargs: object) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if register:
            # Not an inherited name: a subclass is another method.
            METHODS.add(cls, [cls.__dict__.get("name", "")], source=cls.source)

    @property
    def adaptive(self) -> bool:
        """Whether counts are the most that may stay, and every stage of a plan is asked, also those that leave all."""
        return False

    @property
    def prunes_before_the_llm(self) -> bool:
        """Whether the method implements :meth:`select_visual`."""
        return type(self).select_visual is not Method.select_visual

    @property
    def prunes_between_layers(self) -> bool:
        """Whether the method implements :meth:`select_at_layer`."""
        return type(self).select_at_layer is not Method.select_at_layer

    def check_model(self, model: str) -> None:
        """Warn when the options were made for another model than this, called as in its ``ModelSpec``."""

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        """The stages at which an image of ``num_visual_tokens`` is pruned so that its layer-average meets ``keep``.

        Unless a method says otherwise there is one, before the language model.
        """
        return stages_for(keep, num_visual_tokens, num_layers, shape=((0.0, 1.0),))

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        """Stage I: choose ``counts[i]`` tokens of ``images[i]``. Called only when something is to be dropped."""
        raise TopsError(f"Method {self.name!r} does not prune before the language model.")

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        """Stage II: the same between decoder layers."""
        raise TopsError(f"Method {self.name!r} does not prune between decoder layers.")

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        """FLOPs of choosing ``num_kept`` of ``num_tokens``, attention rows not included (the engine counts those)."""
        return 0
