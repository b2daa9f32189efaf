"""The base class of pruning methods, and the selections that they return."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from tops_engine import selection
from tops_engine.budget import Keep, Preset, Stage, stages_for
from tops_engine.device.lazy import Tensor
from tops_engine.errors import TopsError
from tops_engine.methods.file_option import NAMES_FILE
from tops_engine.methods.tokens import LayerTokens, VisualTokens
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
