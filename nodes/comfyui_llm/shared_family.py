"""The engine's family of a model that ComfyUI loaded: the layers of transformers, made of ComfyUI's own modules.

A model of transformers is built without weights, and ComfyUI's modules take the places of its linear layers, norms and
tables. So both models have one set of weights, which ComfyUI keeps, moves, patches (LoRA) and converts (quantised
files) as before: its modules bring a weight to the device and the precision of what they compute when they run.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tops_engine.errors import UnsupportedModel
from tops_engine.families import Family
from tops_engine.families.qwen3_vl import Qwen3VL

from .language_model import LanguageModel

#: The processor of Qwen/Qwen3-VL-4B-Instruct and -8B-Instruct.
QWEN3_VL_PREPROCESSOR = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}

#: The turns of a conversation as Qwen's models read them.
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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
    if model.kind != "Qwen3VL":
        raise UnsupportedModel(
            f"TOPS Load from CLIP runs Qwen3-VL, and this CLIP holds {model.kind}; use TOPS Prune LLM with Generate "
            "Text, or load a checkpoint with TOPS Load Model."
        )
    network = _qwen3_vl(model, device, dtype)
    with tempfile.TemporaryDirectory() as folder:
        _write_processor(Path(folder), tokenizer)
        processor = SharedQwen3VL.load_processor(folder, None)
    return SharedQwen3VL(network, processor)


class SharedQwen3VL(Qwen3VL, register=False):
    """Qwen3-VL on ComfyUI's modules, which ComfyUI moves."""

    def to(self, device: torch.device) -> None:
        """Leave the weights to ComfyUI."""

    @property
    def weight_bytes(self) -> int:
        return 0  # none of its own


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


def _qwen3_vl(model: LanguageModel, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the model of transformers with ComfyUI's modules."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(**_qwen3_vl_config(model.transformer))
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        network = Qwen3VLForConditionalGeneration(config).eval()
    text, visual = network.model.language_model, network.model.visual
    _take_modules(text, model.transformer.model)
    _take_modules(visual, model.transformer.visual)
    text.embed_tokens = TokenTable(model.transformer.model.embed_tokens, device, dtype)
    network.lm_head = OutputHead(model.transformer)
    # These hold only constants, which were not computed on the meta device.
    text.rotary_emb = type(text.rotary_emb)(config.text_config)
    visual.rotary_pos_emb = type(visual.rotary_pos_emb)(config.vision_config)
    _report(visual, device, dtype)
    network.generation_config.eos_token_id = list(model.transformer.model.config.stop_tokens)
    _check_complete(network)
    return network


def _qwen3_vl_config(transformer: Any) -> dict[str, Any]:
    text, visual = transformer.model.config, transformer.visual
    names = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    names += ["num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings"]
    rope = {"rope_type": "default", "rope_theta": text.rope_theta}
    rope |= {"mrope_interleaved": True, "mrope_section": list(text.rope_dims)}
    block = visual.blocks[0]
    return {
        "text_config": {name: getattr(text, name) for name in names} | {"rope_parameters": rope},
        "vision_config": {
            "depth": len(visual.blocks),
            "hidden_size": visual.hidden_size,
            "intermediate_size": block.mlp.linear_fc1.out_features,
            "num_heads": visual.num_heads,
            "patch_size": visual.patch_size,
            "spatial_merge_size": visual.spatial_merge_size,
            "num_position_embeddings": visual.num_position_embeddings,
            "out_hidden_size": text.hidden_size,
            "deepstack_visual_indexes": list(visual.deepstack_visual_indexes),
        },
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "tie_word_embeddings": False,  # the head is ComfyUI's
    }


def _take_modules(network: nn.Module, core: nn.Module) -> None:
    """Put ComfyUI's module in the place of each one of transformers that has weights of its own and the same name."""
    ours = dict(core.named_modules())
    for name in [name for name, one in network.named_modules() if any(True for _ in one.parameters(recurse=False))]:
        parent, _, child = name.rpartition(".")
        if name in ours:
            setattr(network.get_submodule(parent), child, ours[name])


def _report(visual: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Let the tower say where and in which precision it computes; its weights may rest elsewhere."""
    kind = type(visual)
    place = {"device": property(lambda _: device), "dtype": property(lambda _: dtype)}
    visual.__class__ = type(kind.__name__, (kind,), place | {"__module__": kind.__module__})


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


def _write_processor(folder: Path, tokenizer: Any) -> None:
    """Write what a checkpoint has beside its weights, so that it is read as one."""
    inner = getattr(tokenizer, tokenizer.clip).tokenizer
    inner.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(QWEN3_VL_PREPROCESSOR))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    (folder / "chat_template.jinja").write_text(QWEN_TEMPLATE)
