"""Options of loading a model."""

import os
from typing import Literal, Self

from pydantic import Field, model_validator

from tops_engine.media.bounds import MAX_PIXELS
from tops_engine.settings.base import Settings

DEFAULT_MODEL = "llava-hf/llava-1.5-7b-hf"


class ModelSpec(Settings):
    """The checkpoint to load, the device and the precision. Equal specs share one engine (``shared_engine``)."""

    model: str = Field(
        default_factory=lambda: os.environ.get("TOPS_MODEL") or DEFAULT_MODEL,
        min_length=1,
        description="Hub id or local folder of the checkpoint, or `mini` for the embedded model.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub checkpoint.")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="Where to run: auto (the GPU if there is one), cpu, cuda, cuda:1, mps.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Precision of the weights; auto is bfloat16 on a GPU, and on a CPU that computes in it "
        "(AVX512-BF16, AMX) for models of hidden size 576 and more; otherwise float32.",
    )
    attention: Literal["sdpa", "flash_attention_2", "eager"] = Field(
        default="sdpa", description="Attention implementation."
    )
    quantization: Literal["4bit", "8bit"] | None = Field(
        default=None, description="Load quantised weights through bitsandbytes (pip install bitsandbytes)."
    )
    compile: bool = Field(
        default=False,
        description="Compile decoding for NVIDIA GPUs. The first answers take up to a minute longer. The gain on a GPU "
        "was not measured yet; on a CPU there is none.",
    )

    min_pixels: int | None = Field(
        default=None,
        gt=0,
        le=MAX_PIXELS,
        description="Fewest pixels (width times height) of a picture; a smaller one is scaled up. Unset takes what the "
        "checkpoint says.",
    )
    max_pixels: int | None = Field(
        default=None,
        gt=0,
        le=MAX_PIXELS,
        description="Most pixels (width times height) of a picture; a larger one is scaled down. Unset takes what the "
        "checkpoint says.",
    )
    unpad: bool = Field(
        default=True,
        description="Cut off the padding of LLaVA-NeXT's tiles, as the published model does. Papers on pruning do not: "
        "without it every picture fills 2 x 2 tiles and has 2,880 visual tokens.",
    )
    cache_mb: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Most MiB to keep of earlier prompts and pictures, so that the next question about them is "
        "answered sooner; 0 keeps nothing. By default 5 % of the device's memory, on a CPU no more than the weights.",
    )

    @model_validator(mode="after")
    def _can_compile(self) -> Self:
        if self.compile and self.quantization is not None:
            raise ValueError("compile does not take quantised weights; leave out compile or quantization")
        return self

    @model_validator(mode="after")
    def _range_of_pixels(self) -> Self:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} is more than max_pixels={self.max_pixels}; lower it")
        return self
