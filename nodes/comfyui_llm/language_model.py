"""The vision-language model inside a CLIP of ComfyUI."""

import inspect
from dataclasses import dataclass
from typing import Any

from tops_engine.errors import UnsupportedModel

from .towers import CoreTower, tower_of

#: Keyword arguments by which ComfyUI calls a decoder layer, and the decoder.
LAYER_ARGUMENTS = {"x", "attention_mask", "freqs_cis", "past_key_value"}
DECODER_ARGUMENTS = {"embeds", "position_ids", "past_key_values"}


@dataclass(frozen=True)
class LanguageModel:
    """A vision-language model of ComfyUI.

    Attributes
    ----------
    name : of the encoder inside the CLIP, such as ``qwen3vl_4b``; the paths of object patches begin with it.
    encoder : turns token lists into embeddings and generates (``SDClipModel``).
    tower : reads the signals of its vision tower.
    """

    name: str
    encoder: Any
    tower: CoreTower

    @property
    def transformer(self) -> Any:
        """The model: vision tower, projector, decoder and output head."""
        return self.encoder.transformer

    @property
    def decoder(self) -> Any:
        """The layers with token table, rotary embedding and final norm."""
        return self.transformer.model

    @property
    def kind(self) -> str:
        """The name of the architecture in ComfyUI, such as ``Qwen3VL``."""
        kinds = [base.__name__ for base in type(self.transformer).__mro__]
        return next(kind for kind in kinds if not kind.endswith("_") and kind != "Variant").removesuffix("Base")


def find_language_model(clip: Any) -> LanguageModel:
    """Return the vision-language model of a CLIP.

    Raises
    ------
    UnsupportedModel
        If it has none, or one whose parts are not those that are known; the message says which.
    """
    encoders = dict(clip.cond_stage_model.named_children())
    seeing = {name: one for name, one in encoders.items() if hasattr(_transformer(one), "preprocess_embed")}
    if not seeing:
        kinds = ", ".join(
            type(_transformer(one)).__name__ for one in encoders.values() if _transformer(one) is not None
        )
        raise UnsupportedModel(f"This CLIP is a text encoder without a vision tower ({kinds or 'unknown'}).")
    if len(seeing) > 1:
        raise UnsupportedModel(f"This CLIP holds several vision-language models ({', '.join(seeing)}).")
    ((name, encoder),) = seeing.items()
    transformer = encoder.transformer
    tower = tower_of(transformer)
    model = getattr(transformer, "model", None)
    if tower is None or model is None or not _runs_as_known(model):
        raise UnsupportedModel(f"ComfyUI's {type(transformer).__name__} is not known to TOPS.")
    return LanguageModel(name, encoder, tower)


def _transformer(encoder: Any) -> Any:
    return getattr(encoder, "transformer", None)


def _runs_as_known(model: Any) -> bool:
    layers: Any = getattr(model, "layers", ())
    if not len(layers) or not hasattr(model, "compute_freqs_cis"):
        return False
    # The classes are asked, since an object patch may stand for the method of the object.
    layer_takes = set(inspect.signature(type(layers[0]).forward).parameters)
    decoder_takes = set(inspect.signature(type(model).forward).parameters)
    return layer_takes >= LAYER_ARGUMENTS and decoder_takes >= DECODER_ARGUMENTS
