"""CLIP models beside a checkpoint: their text towers read the question, their projections read the patches."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, CLIPModel

from tops_engine.checkpoints import checkpoint_source
from tops_engine.errors import InvalidInput, ModelNotFound, TopsError, UnsupportedModel, quote, reason_of
from tops_engine.methods import ClipEmbeddings


class ClipCompanions:
    """Load CLIP models for a checkpoint whose vision tower is CLIP's, each one once.

    Parameters
    ----------
    checkpoint : the checkpoint's folder or hub id. A subfolder ``clip`` is its own CLIP model.
    vision_width : width of the vision tower's patch features.
    """

    def __init__(self, checkpoint: str, vision_width: int) -> None:
        self._own = Path(checkpoint) / "clip"
        self._vision_width = vision_width
        self._loaded: dict[str, ClipCompanion] = {}

    def embeddings(self, name: str | None, patches: Tensor, question: str) -> ClipEmbeddings:
        """Return patches and question in the space of a CLIP model.

        Parameters
        ----------
        name : hub id or folder of the CLIP model, or None for the checkpoint's own.
        patches : [n, vision_width], patch features as they feed the projector.
        question : its text; CLIP reads the first 77 tokens.

        Raises
        ------
        InvalidInput
            If no model is named and the checkpoint has none of its own.
        ModelNotFound, UnsupportedModel
            If the model cannot be loaded or does not fit; see :class:`ClipCompanion`.
        """
        if name is None and not self._own.is_dir():
            raise InvalidInput(
                "This checkpoint has no CLIP text tower of its own; name the CLIP model that its vision tower is from, "
                "such as clip=openai/clip-vit-large-patch14-336 for LLaVA."
            )
        name = name or str(self._own)
        if name not in self._loaded:
            self._loaded[name] = ClipCompanion(name, self._vision_width, patches.device)
        companion = self._loaded[name]
        return ClipEmbeddings(
            companion.embed_patches(patches),
            companion.embed_text(question),
            partial(companion.embed_words, question),
            companion.project,
        )

    def to(self, device: torch.device) -> None:
        """Move the loaded models."""
        for companion in self._loaded.values():
            companion.to(device)


class _WithoutVisionLayers(CLIPModel):  # type: ignore[misc]
    _keys_to_ignore_on_load_unexpected = (r"vision_model\.encoder\.", "position_ids")
    _keys_to_ignore_on_load_missing = (r"vision_model\.(embeddings|pre_layrnorm)\.", "logit_scale")


class ClipCompanion(nn.Module):
    """The text tower of a CLIP model and the projection of patch features into its space, in float32.

    The layers of its vision tower are not loaded, because the checkpoint's vision tower has the same.

    Parameters
    ----------
    name : hub id or folder of a CLIP model with safetensors; ``id@revision`` for another revision than main.
    vision_width : width of the checkpoint's patch features, which must be that of the CLIP model.
    device : where to run.

    Raises
    ------
    ModelNotFound
        If the model does not exist, or lacks files or weights.
    UnsupportedModel
        If it is not a CLIP model, or if its width is another.
    """

    def __init__(self, name: str, vision_width: int, device: torch.device) -> None:
        super().__init__()
        name, _, revision = name.partition("@")
        source = checkpoint_source(name, revision or None)
        options: dict[str, Any] = {"revision": revision or None, "trust_remote_code": False}
        try:
            config = AutoConfig.from_pretrained(source, **options)
            _require_clip(name, config, vision_width)
            self.tokenizer = AutoTokenizer.from_pretrained(source, **options)
            config.vision_config.num_hidden_layers = 0
            model, info = _WithoutVisionLayers.from_pretrained(
                source,
                config=config,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
        except TopsError:
            raise
        except (OSError, HFValidationError, SafetensorError, ValueError) as error:
            raise ModelNotFound(f"The CLIP model {quote(name)} cannot be loaded: {reason_of(error)}.") from error
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise ModelNotFound(f"The CLIP model {quote(name)} lacks {len(missing)} weights, such as {missing[0]}.")
        self.text, self.text_projection = model.text_model, model.text_projection
        self.norm, self.patch_projection = model.vision_model.post_layernorm, model.visual_projection
        self.max_tokens = int(config.text_config.max_position_embeddings)
        self.to(device).eval()

    def embed_text(self, text: str) -> Tensor:
        """Embed a text, cut to the length that the tower reads (77 tokens): float32 [e]."""
        return self.text_projection(self._read(text).pooler_output)[0]

    def embed_words(self, text: str) -> Tensor:
        """Embed each token of a text, cut in the same way: float32 [t, e]."""
        return self.text_projection(self._read(text).last_hidden_state)[0]

    def embed_patches(self, features: Tensor) -> Tensor:
        """Project patch features [n, vision_width], as they feed the projector: float32 [n, e]."""
        return self.patch_projection(self.norm(features.float()))

    def project(self, features: Tensor) -> Tensor:
        """Project features without the norm: [k, vision_width] -> float32 [k, e]."""
        return self.patch_projection(features.float())

    def _read(self, text: str) -> Any:
        ids = self.tokenizer(text, truncation=True, max_length=self.max_tokens, return_tensors="pt").input_ids
        return self.text(input_ids=ids.to(self.text_projection.weight.device))


def _require_clip(name: str, config: Any, vision_width: int) -> None:
    if config.model_type != "clip":
        raise UnsupportedModel(f"{quote(name)} is a {quote(config.model_type)} model; name a CLIP model.")
    width = config.vision_config.hidden_size
    if width != vision_width:
        raise UnsupportedModel(
            f"{quote(name)} reads vision features of width {width} and this checkpoint's have {vision_width}; name the "
            "CLIP model that the checkpoint's vision tower was made from."
        )
