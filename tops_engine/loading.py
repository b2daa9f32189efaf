"""From a ModelSpec to a loaded family: safetensors only, no remote code, nothing left randomly initialised."""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedConfig
from transformers.utils import logging

from tops_engine.checkpoints import checkpoint_source, is_download
from tops_engine.dependencies import unsupported_version
from tops_engine.device.precision import BFLOAT16_FROM, automatic_dtype
from tops_engine.errors import (
    InvalidInput,
    MissingDependency,
    ModelNotFound,
    TopsError,
    UnsupportedModel,
    listed,
    quote,
    reason_of,
)
from tops_engine.families import Family, family_for
from tops_engine.families.llava_next_padded import padded
from tops_engine.mini import mini_path
from tops_engine.quantised_checkpoints import check_quantisation, decompress, loading_quantised, quantisation
from tops_engine.settings import ModelSpec
from tops_engine.unsupported_models import embedding, lacking_weights, other_format, unsupported


def resolve_device(name: str) -> torch.device:
    """Return the device of a spec; ``auto`` is the first GPU if there is one.

    Raises
    ------
    InvalidInput
        If this machine does not have it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        index = device.index or 0
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise InvalidInput(
                f"This machine has no device {name!r} that torch can use; use device='cpu', or install a torch for the "
                "GPU (pytorch.org)."
            )
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InvalidInput("This machine has no device 'mps' that torch can use; use device='cpu'.")
    return device


def resolve_dtype(name: str, device: torch.device, config: Mapping[str, Any]) -> torch.dtype:
    """Return the precision of a spec on a device; ``config`` is the checkpoint's."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    # A config may leave out sizes that are transformers' defaults, which are those of large models.
    text = config.get("text_config") or config
    return automatic_dtype(device, text.get("hidden_size", BFLOAT16_FROM))


def load_family(spec: ModelSpec, weights_on: torch.device | None = None, tower_only: bool = False) -> Family:
    """Load a checkpoint.

    Parameters
    ----------
    weights_on : where the weights go at first, if not to the device the spec names (which still decides the dtype).
    tower_only : whether to read only what makes visual tokens: the vision tower and the projector. Of the language
        model, the token table, the output layer and the first decoder layer are read as well, so that the model has
        its usual parts. The family can then encode pictures and not answer.

    Raises
    ------
    ModelNotFound
        If it does not exist, cannot be reached, or lacks files or weights.
    UnsupportedModel
        If no family runs its architecture.
    MissingDependency
        If an optional package is needed for the attention or quantisation asked for, or for that of the checkpoint.
    InvalidInput
        If the device does not exist, or if the spec asks to quantise a quantised checkpoint.
    """
    device = resolve_device(spec.device)
    source = _source(spec)
    config, reason = _config(spec, source)
    family = _family(spec, source, config, reason)
    method = quantisation(config)
    if method is not None:
        check_quantisation(spec.model, method, spec.quantization, spec.compile)
    options = _model_options(spec, device, config)
    try:
        if tower_only:
            options["config"] = _shallow_config(source, spec.revision)
        with loading_quantised(spec.model, method, device.type), _quiet_about_layers(tower_only):
            model, missing = family.load_model(
                source, revision=spec.revision, device_map={"": weights_on or device}, **options
            )
            decompress(model)
        processor = family.load_processor(source, spec.revision)
    except TopsError:
        raise
    except ImportError as error:
        raise MissingDependency(
            f"The checkpoint {quote(spec.model)} needs another package: {reason_of(error)}."
        ) from error
    except (OSError, SafetensorError, ValueError) as error:
        if other := other_format(spec.model, source, spec.revision):
            raise UnsupportedModel(other) from error
        note = " The hub cannot be reached for what is missing." if is_download(source) else ""
        raise ModelNotFound(
            f"The checkpoint {quote(spec.model)} cannot be loaded: {reason_of(error)}.{note}"
        ) from error
    if missing:
        raise ModelNotFound(lacking_weights(spec.model, missing, model))
    loaded = family(model.eval(), processor)
    loaded.bound_pixels(spec.min_pixels, spec.max_pixels)
    return loaded


def check_supported(spec: ModelSpec, source: str) -> None:
    """Check the config of a checkpoint before its weights are downloaded.

    Parameters
    ----------
    source : a folder that holds the checkpoint's small files.

    Raises
    ------
    UnsupportedModel, ModelNotFound, MissingDependency
        As :func:`load_family`.
    """
    config, reason = _config(spec, source)
    _family(spec, source, config, reason)


def _shallow_config(source: str, revision: str | None) -> Any:
    """Return the config of a checkpoint with one layer in the language model; transformers then reads no other."""
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    text = config.get_text_config()
    text.num_hidden_layers = 1
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    return config


@contextmanager
def _quiet_about_layers(tower_only: bool) -> Iterator[None]:
    """Keep transformers from listing the weights of the layers that are not read."""
    before = logging.get_verbosity()
    if tower_only:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def is_quantised(spec: ModelSpec) -> bool:
    """Return whether a spec asks for quantised weights, or names a checkpoint that has them.

    They cannot move between devices.
    """
    return spec.quantization is not None or quantisation(_config(spec, _source(spec))[0]) is not None


def _source(spec: ModelSpec) -> str:
    return str(mini_path()) if spec.model == "mini" else checkpoint_source(spec.model, spec.revision)


def _config(spec: ModelSpec, source: str) -> tuple[dict[str, Any], str]:
    """Return the contents of config.json, empty if there is none, and then the reason."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(source, revision=spec.revision)
    except (OSError, HFValidationError) as error:
        return {}, reason_of(error)
    return config, "It has no config.json"


def _family(spec: ModelSpec, source: str, config: dict[str, Any], reason: str) -> type[Family]:
    if not config:
        if other := other_format(spec.model, source, spec.revision):
            raise UnsupportedModel(other)
        raise ModelNotFound(
            f"The checkpoint {quote(spec.model)} cannot be found: {reason}. The embedded model, 'mini', needs no "
            "download."
        )
    family = family_for(config)
    if family is None:
        raise UnsupportedModel(unsupported(spec.model, source, spec.revision, config))
    if refusal := embedding(spec.model, source, config):
        raise UnsupportedModel(refusal)
    required = f"transformers>={family.oldest_transformers}"
    if family.oldest_transformers and (installed := unsupported_version(required)):
        raise MissingDependency(
            f"{quote(spec.model)} needs {required}, and this Python has transformers {installed}; "
            f"run: pip install '{required}'."
        )
    tower = config.get("vision_config", {}).get("model_type")
    if tower is not None and family.vision_model_types and tower not in family.vision_model_types:
        raise UnsupportedModel(
            f"{quote(spec.model)} has a {quote(tower)} vision tower; supported are {listed(family.vision_model_types)}."
        )
    text = config.get("text_config", {}).get("model_type")
    if text is not None and family.text_model_types and text not in family.text_model_types:
        raise UnsupportedModel(
            f"The text model of {quote(spec.model)} is of the type {quote(text)}; supported in this family are "
            f"{listed(family.text_model_types)}."
        )
    return family if spec.unpad else padded(family)


def _model_options(spec: ModelSpec, device: torch.device, config: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {
        "dtype": resolve_dtype(spec.dtype, device, config),
        "attn_implementation": spec.attention,
    }
    if spec.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise MissingDependency("attention='flash_attention_2' needs the package flash-attn; install it or use 'sdpa'.")
    if spec.quantization is not None:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise MissingDependency("quantization needs bitsandbytes: pip install 'bitsandbytes>=0.46'.")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=spec.quantization == "4bit",
            load_in_8bit=spec.quantization == "8bit",
            bnb_4bit_compute_dtype=options["dtype"],
        )
    return options
