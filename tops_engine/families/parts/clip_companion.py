"""A CLIP model beside the checkpoint: its text tower for the question, its projection for the checkpoint's patches."""

from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, CLIPModel

from tops_engine.checkpoints import checkpoint_source, first_line
from tops_engine.errors import ModelNotFound, TopsError, UnsupportedModel


class _WithoutVisionLayers(CLIPModel):  # type: ignore[misc]
    _keys_to_ignore_on_load_unexpected = (r"vision_model\.encoder\.", "position_ids")
    _keys_to_ignore_on_load_missing = (r"vision_model\.(embeddings|pre_layrnorm)\.", "logit_scale")


class ClipCompanion(nn.Module):
    """The text tower of a CLIP model and what brings patch features into its space, in float32.

    The layers of its vision tower are not loaded: the checkpoint has run its own.

    Parameters
    ----------
    name : hub id or folder of a CLIP model with safetensors; ``id@revision`` for another revision than main.
    vision_width : of the checkpoint's patch features, which has to be CLIP's own.
    device : where to run.

    Raises
    ------
    ModelNotFound
        If it does not exist, or lacks files or weights.
    UnsupportedModel
        If it is not a CLIP model, or one of another width.
    """

    def __init__(self, name: str, vision_width: int, device: torch.device) -> None:
        super().__init__()
        name, _, revision = name.partition("@")
        source = checkpoint_source(name)
        options: dict[str, Any] = {"revision": revision or None, "trust_remote_code": False}
        try:
            config = AutoConfig.from_pretrained(source, **options)
            if config.model_type != "clip":
                raise UnsupportedModel(f"{name!r} is a {config.model_type!r} model; name a CLIP model.")
            if config.vision_config.hidden_size != vision_width:
                raise UnsupportedModel(
                    f"{name!r} reads vision features of width {config.vision_config.hidden_size} and this checkpoint's "
                    f"have {vision_width}; name the CLIP model whose vision tower the checkpoint was made from."
                )
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
            raise ModelNotFound(f"The CLIP model {name!r} cannot be loaded: {first_line(error)}") from error
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise ModelNotFound(f"The CLIP model {name!r} lacks {len(missing)} weights, such as {missing[0]}.")
        self.text, self.text_projection = model.text_model, model.text_projection
        self.norm, self.patch_projection = model.vision_model.post_layernorm, model.visual_projection
        self.max_tokens = int(config.text_config.max_position_embeddings)
        self.to(device).eval()

    def embed_text(self, text: str) -> Tensor:
        """The text, cut to what the tower reads (77 tokens): float32 [e]."""
        ids = self.tokenizer(text, truncation=True, max_length=self.max_tokens, return_tensors="pt").input_ids
        pooled = self.text(input_ids=ids.to(self.text_projection.weight.device)).pooler_output
        return self.text_projection(pooled)[0]

    def embed_patches(self, features: Tensor) -> Tensor:
        """Patch features [n, vision_width], as they feed the projector: float32 [n, e]."""
        return self.patch_projection(self.norm(features.float()))
