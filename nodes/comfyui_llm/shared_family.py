"""The engine's family of a model that ComfyUI loaded: the layers of transformers, made of ComfyUI's own modules.

A model of transformers is built without weights, and ComfyUI's modules take the places of its linear layers, norms and
tables. So both models have one set of weights, which ComfyUI keeps, moves, patches (LoRA) and converts (quantised
files) as before: its modules bring a weight to the device and the precision of what they compute when they run.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tops_engine.errors import UnsupportedModel
from tops_engine.families import Family

from .language_model import LanguageModel
from .shared_qwen import FAMILIES, PREPROCESSOR

#: Special tokens by the fields of a config that hold their ids.
SPECIAL_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def shared_family(model: LanguageModel, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> Family:
    """Return the engine's family on the modules of ComfyUI's model.

    Parameters
    ----------
    tokenizer : ComfyUI's, of the same CLIP.
    device, dtype : where and in which precision ComfyUI computes.

    Raises
    ------
    UnsupportedModel
        If the engine cannot run on this model's modules.
    """
    if model.kind.startswith("Qwen25"):
        raise UnsupportedModel(
            "ComfyUI loads Qwen2.5-VL without its output head, so that it only encodes prompts for image models and "
            "cannot answer; load a checkpoint with TOPS Load Model, or use Qwen3-VL or Qwen3.5 with Load CLIP."
        )
    if model.kind not in FAMILIES:
        raise UnsupportedModel(
            f"TOPS Load from CLIP runs Qwen3-VL and Qwen3.5, and this CLIP holds {model.kind}; use TOPS Prune LLM with "
            "Generate Text, or load a checkpoint with TOPS Load Model."
        )
    family = FAMILIES[model.kind]
    text_tokenizer = getattr(tokenizer, tokenizer.clip).tokenizer
    ids = {name: text_tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL_TOKENS.items()}
    config = family.config(model.transformer) | ids | {"tie_word_embeddings": False}  # the head is ComfyUI's
    network = _network(family.model_type, config, model.transformer, device, dtype)
    with tempfile.TemporaryDirectory() as folder:
        _write_processor(Path(folder), text_tokenizer, family.model_type, family.template)
        processor = family.load_processor(folder, None)
    return family(network, processor)


class TokenTable(nn.Module):
    """ComfyUI's table of token embeddings, in the precision of the run."""

    def __init__(self, table: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.table, self.dtype = table, dtype
        self.weight = torch.empty(0, device=device, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.table(ids, out_dtype=self.dtype)
        return embedded.to(self.dtype)


class OutputHead(nn.Module):
    """ComfyUI's output head, which may be the table of tokens. ``weight`` tells its shape only."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = [transformer]  # in a list, so that it is not a part of this module
        self.weight = torch.empty(transformer.model.config.vocab_size, 0, device="meta")

    def forward(self, hidden_states: Tensor) -> Tensor:
        rows = hidden_states.reshape(-1, 1, hidden_states.shape[-1])
        logits: Tensor = self.transformer[0].logits(rows)
        return logits.reshape(*hidden_states.shape[:-1], -1)


class Convolution(nn.Module):
    """ComfyUI's convolution of a linear layer, with its weight as the layer of transformers reads it."""

    bias = None

    def __init__(self, convolution: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.convolution, self.device, self.dtype = convolution, device, dtype

    @property
    def weight(self) -> Tensor:
        return _brought(self.convolution.weight, self.device, self.dtype)

    def forward(self, hidden_states: Tensor) -> Tensor:
        convolved: Tensor = self.convolution(hidden_states)
        return convolved


def _network(
    model_type: str, config_values: dict[str, Any], transformer: Any, device: torch.device, dtype: torch.dtype
) -> Any:
    """Return the model of transformers with ComfyUI's modules."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.for_model(model_type, **config_values)
    with torch.device("meta"):
        network = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval()
    text, visual = network.model.language_model, network.model.visual
    _take_modules(text, transformer.model)
    _take_modules(visual, transformer.visual)
    text.embed_tokens = TokenTable(transformer.model.embed_tokens, device, dtype)
    network.lm_head = OutputHead(transformer)
    for layer, core in zip(text.layers, transformer.model.layers, strict=True):
        if hasattr(layer, "linear_attn"):
            _take_linear_attention(layer.linear_attn, core.linear_attn, device, dtype)
    # These hold only constants, which were not computed on the meta device.
    text.rotary_emb = type(text.rotary_emb)(config.text_config)
    visual.rotary_pos_emb = type(visual.rotary_pos_emb)(config.vision_config)
    # The tower says where and in which precision it computes; its weights may rest elsewhere.
    _set_properties(visual, device=lambda _: device, dtype=lambda _: dtype)
    network.generation_config.eos_token_id = list(transformer.model.config.stop_tokens)
    _check_complete(network)
    return network


def _take_modules(network: nn.Module, core: nn.Module) -> None:
    """Put ComfyUI's module in the place of each one of transformers that only holds weights and has the same name."""
    ours = dict(core.named_modules())
    holders = [name for name, one in network.named_modules() if one._parameters and not one._modules]
    for name in holders:
        parent, _, child = name.rpartition(".")
        if name in ours:
            setattr(network.get_submodule(parent), child, ours[name])


def _take_linear_attention(layer: nn.Module, core: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Let a linear layer read the weights that ComfyUI's layer holds itself, wherever they are at that time."""
    layer.conv1d = Convolution(core.conv1d, device, dtype)
    del layer.A_log, layer.dt_bias
    _set_properties(
        layer,
        A_log=lambda _: _brought(core.A_log, device, torch.float32),
        dt_bias=lambda _: _brought(core.dt_bias, device, torch.float32),
    )


def _set_properties(module: nn.Module, **properties: Callable[[Any], Any]) -> None:
    """Give one module properties of its own."""
    kind = type(module)
    own = {name: property(read) for name, read in properties.items()}
    module.__class__ = type(kind.__name__, (kind,), own | {"__module__": kind.__module__})


def _brought(weight: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    from comfy import model_management

    brought: Tensor = model_management.cast_to_device(weight, device, dtype)
    return brought


def _check_complete(network: nn.Module) -> None:
    missing = sorted(_without_weights(network))
    if missing:
        raise UnsupportedModel(
            f"This version of ComfyUI names the parts of its model in another way than TOPS knows ({missing[0]}); use "
            "TOPS Prune LLM with Generate Text."
        )


def _without_weights(network: nn.Module) -> Iterator[str]:
    for name, weight in (*network.named_parameters(), *network.named_buffers()):
        if weight.is_meta:
            yield name


def _write_processor(folder: Path, tokenizer: Any, model_type: str, template: str) -> None:
    """Write what a checkpoint has beside its weights, so that it is read as one."""
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "chat_template.jinja").write_text(template)
