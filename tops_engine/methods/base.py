"""The base class of pruning methods, and the signals that a method can read.

A method sees tensors and layouts, never a model. It returns :class:`Selection`s, which the engine applies.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

#: What makes up for the attention that dropped tokens leave.
Rectify = Literal["none", "restore"]

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
    """Return a function that stands for a signal which a model family does not give; calling it raises an error."""

    def refuse(*_: object) -> Any:
        raise UnsupportedModel(f"This model gives no {what}, which the pruning method needs; choose another method.")

    return refuse


class ClipEmbeddings(NamedTuple):
    """Picture and question in the space of a CLIP model.

    Attributes
    ----------
    patches, question : float32 [n, e] and [e].
    words : computes the tokens of the question, as CLIP's text tower puts them out: float32 [t, e].
    project : brings features like those of patches into the space without the norm before it: [k, c] -> [k, e].
    """

    patches: Tensor
    question: Tensor
    words: Callable[[], Tensor] = unavailable("words in CLIP's space")
    project: Callable[[Tensor], Tensor] = unavailable("projection into CLIP's space")


class TowerUse(NamedTuple):
    """What a vision tower that left something out did for a picture or video.

    Attributes
    ----------
    patches, encoded : of the picture, and those that went through the tower's first layer.
    saved_flops : FLOPs that a whole run would have taken in addition.
    """

    patches: int
    encoded: int
    saved_flops: int


@dataclass(frozen=True)
class VisualTokens:
    """The visual tokens of one image right after the projector (stage I).

    Everything except features and layout is computed when a method asks for it, once for all images of a batch. A
    signal that a family does not give raises :class:`UnsupportedModel`, so that a new family only needs the signals
    without a default.

    Attributes
    ----------
    features : [n, d] projected tokens, in prompt order.
    layout : where each token lies in the picture.
    encoder_features : [n, c], the input of the projector: the vision tower's patch features in the same order; 0 for
        tokens that are not patches.
    vision_attention : computes the attention from [CLS] to the patch of each token, in the vision layer that feeds the
        projector: float32 [n], mean over heads. Without [CLS] it is the mean attention that the patch receives. 0 for
        tokens that are not patches.
    deepstack : [n, d] for each of the first decoder layers: what the model adds to these tokens after that layer, for
        families that feed features of several vision layers (Qwen3-VL). The engine selects its rows with the tokens.
    vision_keys : the keys of the patches in the same vision layer, unscaled: float32 [n, head_dim], mean over heads.
    received_attention : the mean attention that the patch of each token receives from all tokens of its tile, [CLS]
        included, in the same vision layer: float32 [n], mean over heads. It equals ``vision_attention`` without [CLS].
    middle_attention : the same in a layer in the middle of the vision tower.
    shallow_attention : attention as in ``vision_attention`` in an early layer of the vision tower.
    last_layer_attention, last_layer_keys : attention (as above) and keys of the vision tower's last layer, taken as a
        single head: float32 [n] and [n, width].
    cls_features : [n, c], the output for [CLS] of the vision layer that feeds the projector, in the tile of each
        token's patch; None where there is no [CLS] or the projector cannot read it.
    tiles : int64 [n], the same number above 0 for tokens of the same tile (a picture that the vision tower saw); 0 for
        tokens that are not patches.
    project : the projector: [k, c] like ``encoder_features`` -> [k, d].
    question_embeddings : the language model's embeddings of the tokens of the question, [t, d].
    question_products : the products of the tokens' keys and the mean query of the question's tokens in the language
        model's first layer with attention, before the rotary embedding and the softmax: float32 [n, heads].
    clip_embeddings : patches and question in the space of a CLIP model, given its hub id or folder, or None for the
        one that the checkpoint brings along.
    survivors : int64 [k], ascending: the tokens that the vision tower kept; None if it kept all. The values of the
        others are 0. A method gets :meth:`remaining`, where there are no others.
    tower : what the tower did for the picture if it left something out; None after a whole run.
    """

    features: Tensor
    layout: VisualLayout
    encoder_features: Callable[[], Tensor]
    vision_attention: Callable[[], Tensor]
    deepstack: Sequence[Tensor] = ()
    vision_keys: Callable[[], Tensor] = field(default_factory=partial(unavailable, "vision keys"))
    received_attention: Callable[[], Tensor] = field(
        default_factory=partial(unavailable, "attention that patches receive")
    )
    middle_attention: Callable[[], Tensor] = field(
        default_factory=partial(unavailable, "attention of a middle vision layer")
    )
    shallow_attention: Callable[[], Tensor] = field(
        default_factory=partial(unavailable, "attention of an early vision layer")
    )
    last_layer_attention: Callable[[], Tensor] = field(default_factory=partial(unavailable, "last vision layer"))
    last_layer_keys: Callable[[], Tensor] = field(default_factory=partial(unavailable, "last vision layer"))
    cls_features: Callable[[], Tensor] | None = None
    tiles: Callable[[], Tensor] = field(default_factory=partial(unavailable, "tiles"))
    project: Callable[[Tensor], Tensor] = field(default_factory=partial(unavailable, "projector"))
    question_embeddings: Callable[[], Tensor] = field(default_factory=partial(unavailable, "question embeddings"))
    question_products: Callable[[], Tensor] = field(
        default_factory=partial(unavailable, "queries and keys of the first layer")
    )
    clip_embeddings: Callable[[str | None], ClipEmbeddings] = field(
        default_factory=partial(unavailable, "CLIP features")
    )
    survivors: Tensor | None = None
    tower: TowerUse | None = None

    @property
    def num_remaining(self) -> int:
        """How many tokens the vision tower kept."""
        return self.layout.num_tokens if self.survivors is None else len(self.survivors)

    def remaining(self) -> "VisualTokens":
        """Return the tokens that the vision tower kept, as if there were no others."""
        rows = self.survivors
        if rows is None:
            return self

        def clip_embeddings(model: str | None) -> ClipEmbeddings:
            embedded = self.clip_embeddings(model)
            return embedded._replace(patches=embedded.patches[rows])

        lazy: dict[str, Any] = {
            name: partial(_rows_of, getattr(self, name), rows) for name in SIGNALS if getattr(self, name)
        }
        return replace(
            self,
            features=self.features[rows],
            layout=self.layout.part(rows.cpu()),
            deepstack=[values[rows] for values in self.deepstack],
            clip_embeddings=clip_embeddings,
            question_products=partial(_rows_of, self.question_products, rows),
            survivors=None,
            **lazy,
        )


#: The signals of the vision tower, by their names in :class:`VisualTokens`.
SIGNALS = frozenset(
    "encoder_features vision_attention vision_keys received_attention middle_attention shallow_attention "
    "last_layer_attention last_layer_keys cls_features tiles".split()
)


def _rows_of(compute: Callable[[], Tensor], rows: Tensor) -> Tensor:
    return compute()[rows]


Rows = Literal["text", "last", "image"]


class AttentionRows(Protocol):
    """Computes the attention from some tokens to the remaining tokens of the image, from a layer's q/k projections.

    Only the requested rows are computed. Each is an exact softmax over everything that its token may attend to.
    """

    def __call__(
        self, rows: Rows, layer: Literal["next", "previous"] = "next", heads: Literal["mean", "max"] = "mean"
    ) -> Tensor:
        """Return the rows of the text tokens after the image, of the last prompt token, or of the image's own tokens.

        Parameters
        ----------
        layer : the layer that runs next, or the one that ran last (its keys exist already, so it costs less).
        heads : the mean over heads, or the maximum for each element.

        Returns
        -------
        float32 [number of rows, n]
        """


@dataclass(frozen=True)
class LayerTokens:
    """The remaining visual tokens of one image at the input of a decoder layer (stage II).

    Attributes
    ----------
    hidden_states : [n, d] at the input of the layer.
    kept : int64 [n], which of the image's N tokens these are (indices into the layout).
    layout : of the whole, unpruned image.
    attention : see :class:`AttentionRows`.
    text_similarity : computes the dot products of the image's N projected tokens (before any pruning) with the
        embeddings of the t text tokens after the image: float32 [N, t].
    normed_states : computes the hidden states of these n tokens, then of the t text tokens after the image, after the
        norm that follows the last layer: [n + t, d].
    previous_states : computes the hidden states of these n tokens at the input of the layer that ran last: [n, d].
    transitions : computes how much the layers that :meth:`Method.watched_layers` names have changed each of these n
        tokens so far: float32 [n]. Its parts are added over the attention and the feed-forward part of each layer.
    previous_keys : the keys of the same tokens in the layer that ran last, rotated, heads side by side: [n + t, h].
    """

    hidden_states: Tensor
    kept: Tensor
    layout: VisualLayout
    attention: AttentionRows
    text_similarity: Callable[[], Tensor]
    normed_states: Callable[[], Tensor]
    previous_keys: Callable[[], Tensor]
    previous_states: Callable[[], Tensor]
    transitions: Callable[[], Tensor] = field(default_factory=partial(unavailable, "transitions of tokens"))


@dataclass(frozen=True)
class Selection:
    """The tokens of one image that stay.

    Attributes
    ----------
    indices : int64 [k], ascending, into the tokens that the method was given.
    order : the same indices in the order in which the method chose them, if it has an order.
    features : [k, d], the features that replace those of the kept tokens, for methods that merge.
    sizes : float32 [k], how many tokens each stands for, where attention is rectified by it.
    """

    indices: Tensor
    order: Tensor | None = None
    features: Tensor | None = None
    sizes: Tensor | None = None

    @classmethod
    def in_order(cls, order: Tensor) -> Self:
        """Return the selection of tokens that were chosen in this order: int64 [k]."""
        return cls(order.sort().values, order)

    def among(self, tokens: Tensor | None) -> "Selection":
        """Return the selection among all tokens, if it was made among ``tokens`` of them, int64 [n] ascending."""
        if tokens is None:
            return self
        order = None if self.order is None else tokens[self.order]
        return replace(self, indices=tokens[self.indices], order=order)

    @classmethod
    def highest(cls, scores: Tensor, count: int) -> Self:
        """Return the selection of the ``count`` highest scores [n]; of equal scores the lowest index wins."""
        return cls.in_order(selection.top_tokens(scores, count))


def with_dropped(image: VisualTokens, chosen: Selection) -> Selection:
    """Return a selection whose tokens are averaged with the dropped tokens that are most similar to them."""
    from tops_engine.device.transfer import to_device  # imports torch, which reading the options does not need

    kept = chosen.indices
    features = image.features[kept] if chosen.features is None else chosen.features
    shown = to_device(image.layout.shows_picture, kept.device)
    folded = selection.fold_dropped(image.features, shown, kept, features)
    return replace(chosen, features=folded)


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
        model, for servers that cannot prune between layers, and as the first of two composed methods.
    second_stage_options : the options under which such a method prunes only between layers, as the second of two.
    signals : the signals of the vision tower that stage I reads, by their names in :class:`VisualTokens`. The engine
        keeps them with a picture, so that another budget need not run the tower again; it runs for one not listed here.
    waits_for_device : whether a selection depends on values in a way that makes the host wait for the GPU.
    needs_grids : whether stage I needs every token of a picture, in rows and columns.
    for_videos : whether the method is one for videos, which treats a picture as a video of one frame.
    reads_question : whether stage I depends on the question, so that its selection cannot be reused for another
        question about the picture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    default_positions: ClassVar[Positions] = "contiguous"
    presets: ClassVar[Mapping[str, Preset]] = {}
    first_stage_options: ClassVar[Mapping[str, Any]] = {}
    second_stage_options: ClassVar[Mapping[str, Any]] = {}
    needs_grids: ClassVar[bool] = False
    for_videos: ClassVar[bool] = False
    reads_question: ClassVar[bool] = False
    signals: ClassVar[tuple[str, ...]] = ()
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
        """Whether a method may keep fewer tokens than a stage allows.

        Such a method is also asked at stages of a plan that would drop nothing.
        """
        return False

    @property
    def prunes_before_the_llm(self) -> bool:
        """Whether the method implements :meth:`select_visual`."""
        return type(self).select_visual is not Method.select_visual

    @property
    def prunes_between_layers(self) -> bool:
        """Whether the method implements :meth:`select_at_layer`."""
        return type(self).select_at_layer is not Method.select_at_layer

    @property
    def selects_jointly(self) -> bool:
        """Whether the method can choose among all pictures of a prompt (``budget_per="prompt"``)."""
        return type(self).select_visual_jointly is not Method.select_visual_jointly

    def method_at(self, layer: int) -> "Method":
        """Return the method that chooses at a layer, 0 being before the language model: itself unless composed."""
        return self

    def check_model(self, model: str) -> None:
        """Warn if the options were made for another model than this one, given by its name in a ``ModelSpec``."""

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        """Return the stages at which an image is pruned so that its layer-average meets ``keep``.

        The default is one stage, before the language model.
        """
        return stages_for(keep, num_visual_tokens, num_layers, shape=((0.0, 1.0),))

    def watched_layers(self, num_layers: int) -> range:
        """Return the layers whose changes of tokens stage II reads as :attr:`LayerTokens.transitions`.

        Earlier prompts are not reused by a method that names any, since their changes are not kept.
        """
        return range(0)

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        """Return ``counts[i]`` tokens of ``images[i]`` (stage I). Called only if tokens are to be dropped."""
        raise TopsError(f"Method {self.name!r} does not prune before the language model.")

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        """Return ``counts[i]`` tokens of ``images[i]`` between decoder layers (stage II)."""
        raise TopsError(f"Method {self.name!r} does not prune between decoder layers.")

    def select_visual_jointly(
        self, images: Sequence[VisualTokens], count: int, least: Sequence[int]
    ) -> list[Selection]:
        """Return ``count`` tokens of all images of a prompt together (stage I), at least ``least[i]`` of image i."""
        raise TopsError(f"Method {self.name!r} does not choose among all pictures of a prompt.")

    def select_at_layer_jointly(
        self, images: Sequence[LayerTokens], count: int, least: Sequence[int]
    ) -> list[Selection]:
        """Return ``count`` tokens of all images of a prompt together (stage II), at least ``least[i]`` of image i."""
        raise TopsError(f"Method {self.name!r} does not choose among all pictures of a prompt.")

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        """Return the FLOPs of choosing ``num_kept`` of ``num_tokens``.

        Attention rows are not included; the engine counts them.
        """
        return 0
