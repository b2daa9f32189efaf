"""Checkpoints that are published quantised: what reads each format, and what keeps one from running here."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from tops_engine.errors import InvalidInput, MissingDependency, TopsError, UnsupportedModel, listed, quote, reason_of

#: Packages that transformers needs to read a format, by the ``quant_method`` in config.json. It reads fp8, mxfp8 and
#: mxfp4 without one. Formats that are not listed are rare; where one needs a package, transformers names it.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "auto-round": ("auto-round",),
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "gptq": ("optimum", "gptqmodel"),
    "hqq": ("hqq",),
    "torchao": ("torchao",),
}

#: Formats to name to those who have another one.
USUAL = ("bitsandbytes", "fp8", "compressed-tensors", "awq", "gptq")


def quantisation(config: Mapping[str, Any]) -> str | None:
    """Return the ``quant_method`` of a checkpoint with this config.json; None if it is not quantised."""
    settings = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    if not settings:
        return None
    # bitsandbytes wrote no method at first.
    is_old = settings.get("load_in_4bit") or settings.get("load_in_8bit")
    return str(settings.get("quant_method") or ("bitsandbytes" if is_old else "unknown"))


def check_quantisation(name: str, method: str, asked: str | None, compiles: bool) -> None:
    """Check that a quantised checkpoint can be read.

    Parameters
    ----------
    name : the checkpoint, as the user gave it.
    asked : ``quantization`` of the spec.
    compiles : ``compile`` of the spec.

    Raises
    ------
    UnsupportedModel
        If transformers does not know the format. It would load such weights as if they were not quantised.
    MissingDependency
        If a package is missing.
    InvalidInput
        If the spec asks for what quantised weights cannot do.
    """
    title = f"{quote(name)} is published with {quote(method)} quantisation"
    if method not in {*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"}:
        raise UnsupportedModel(
            f"{title}, which transformers does not read; use the unquantised checkpoint, or one of the formats "
            f"{listed(USUAL)}."
        )
    if asked is not None:
        raise InvalidInput(f"{title}, so it cannot be quantised to {asked}; leave quantization unset.")
    if compiles:
        raise InvalidInput(f"{title}, and compile does not take quantised weights; leave out compile.")
    missing = [package for package in PACKAGES.get(method, ()) if not _is_installed(package)]
    if missing:
        raise MissingDependency(f"{title}; install what reads it: pip install {' '.join(missing)}")


@contextmanager
def loading_quantised(name: str, method: str | None, device: str) -> Iterator[None]:
    """Say in one sentence why quantised weights cannot be loaded to a device.

    Raises
    ------
    UnsupportedModel
        If the reader of the format fails, which raises errors of any kind. Missing packages and files, damaged files
        and a lack of memory keep their own errors.
    """
    try:
        yield
    except (TopsError, ImportError, OSError, SafetensorError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if method is None:
            raise
        raise UnsupportedModel(
            f"{quote(name)} is published with {quote(method)} quantisation, which cannot be loaded on {device}: "
            f"{reason_of(error)}."
        ) from error


def decompress(model: Any) -> None:
    """Unpack the weights of compressed-tensors, which their package leaves to the first forward of the whole model.

    The engine calls the layers of a model, never the whole one.
    """
    if hasattr(model, "ct_decompress_hook"):
        model.hf_quantizer.compressor.decompress_model(model)


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True
