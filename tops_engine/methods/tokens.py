"""What a pruning method is given: the visual tokens of an image at a stage, and the signals that it can read.

A method sees tensors and layouts, never a model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

from tops_engine.device.lazy import Tensor
from tops_engine.errors import UnsupportedModel
from tops_engine.media.layout import VisualLayout


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
