"""Quantise a small checkpoint in the formats that are published: names and types of the weights, and the config."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from tests.support.checkpoints import save_llava

IGNORED = ["lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"]
BLOCK = 128

#: The config of checkpoints for gptqmodel, by ``quant_method``.
GPTQMODEL: dict[str, dict[str, Any]] = {
    "awq": {
        "group_size": 32,
        "version": "gemm",
        "zero_point": True,
        "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    },
    "gptq": {
        "group_size": 32,
        "desc_act": False,
        "sym": True,
        "checkpoint_format": "gptq",
        "modules_in_block_to_quantize": [
            ["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"],
            ["self_attn.o_proj"],
            ["mlp.up_proj", "mlp.gate_proj"],
            ["mlp.down_proj"],
        ],
    },
}


def save_plain(folder: Path) -> Path:
    """Save an unquantised LLaVA whose layers are as wide as a block of FP8."""
    return save_llava(folder, hidden_size=BLOCK, intermediate_size=2 * BLOCK)


def save_with_method(folder: Path, method: str) -> Path:
    """Save weights that are not quantised with a config that says they are."""
    return _rewritten(save_plain(folder), {}, {"quant_method": method})


def save_bitsandbytes(folder: Path, bits: int) -> Path:
    """Save 4- or 8-bit weights as transformers does; this needs bitsandbytes."""
    plain = save_plain(folder / "plain")
    settings = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4")
    model = AutoModelForImageTextToText.from_pretrained(plain, quantization_config=settings, device_map={"": "cpu"})
    model.save_pretrained(folder)
    for path in plain.iterdir():
        if path.suffix != ".safetensors" and not (folder / path.name).exists():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def save_fp8(folder: Path) -> Path:
    """Save fine-grained FP8 as Qwen does: a scale for each block of 128 x 128 weights."""
    plain = save_plain(folder)
    changed: dict[str, Tensor] = {}
    for name, weight in _text_weights(plain):
        rows, columns = weight.shape[0] // BLOCK, weight.shape[1] // BLOCK
        blocks = weight.view(rows, BLOCK, columns, BLOCK)
        scale = blocks.abs().amax(dim=(1, 3)) / 448
        packed = blocks / scale[:, None, :, None]
        changed[name] = packed.view_as(weight).to(torch.float8_e4m3fn)
        changed[f"{name}_scale_inv"] = scale
    settings = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": ["lm_head", "model.vision_tower", "model.multi_modal_projector"],
    }
    return _rewritten(plain, changed, settings)


def save_compressed_tensors(folder: Path, kind: str) -> Path:
    """Save what llm-compressor writes: ``fp8`` (W8A8), ``int8`` (W8A8) or ``int4`` (W4A16, packed)."""
    plain = save_plain(folder)
    changed: dict[str, Tensor] = {}
    for name, weight in _text_weights(plain):
        if kind == "int4":
            values, scale = _int4(weight)
            stem = name.removesuffix("weight")
            changed |= {f"{stem}weight_packed": values, f"{stem}weight_scale": scale}
            changed[f"{stem}weight_shape"] = torch.tensor(weight.shape)
            continue
        most, dtype = {"fp8": (448, torch.float8_e4m3fn), "int8": (127, torch.int8)}[kind]
        scale = weight.abs().amax(dim=1, keepdim=True) / most
        scaled = weight / scale
        changed |= {name: (scaled.round() if kind == "int8" else scaled).to(dtype), f"{name}_scale": scale}
    return _rewritten(plain, changed, _compressed_tensors_config(kind), packed=kind == "int4")


def save_gptqmodel(folder: Path, method: str) -> Path:
    """Save 4-bit weights as AutoAWQ (``awq``) or GPTQModel (``gptq``) writes them: groups of 32, zero at 8."""
    plain = save_plain(folder)
    changed: dict[str, Tensor] = {}
    for name, weight in _text_weights(plain):
        values, scale = _groups_of_32(weight)
        values, scale = values.T.contiguous() + 8, scale.T.contiguous()
        zeros, stem = torch.full_like(scale, 8), name.removesuffix("weight")
        if method == "awq":
            order = [0, 2, 4, 6, 1, 3, 5, 7]
            packed = {"qweight": _packed(values, order), "qzeros": _packed(zeros, order), "scales": scale.half()}
        else:
            columns = _packed(values.T.contiguous()).T
            # This format stores one less than the zero.
            packed = {"qweight": columns, "qzeros": _packed(zeros - 1), "scales": scale.half()}
            packed["g_idx"] = (torch.arange(weight.shape[1]) // 32).int()
        changed |= {stem + kind: value for kind, value in packed.items()}
    return _rewritten(plain, changed, GPTQMODEL[method] | {"quant_method": method, "bits": 4}, packed=True)


def _compressed_tensors_config(kind: str) -> dict[str, Any]:
    bits, number = (4, "int") if kind == "int4" else (8, "float" if kind == "fp8" else "int")
    common = {"num_bits": bits, "type": number, "symmetric": True}
    if kind == "int4":
        group: dict[str, Any] = {"weights": common | {"strategy": "group", "group_size": 32, "dynamic": False}}
    else:
        weights = common | {"strategy": "channel", "dynamic": False}
        group = {"weights": weights, "input_activations": common | {"strategy": "token", "dynamic": True}}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": {"fp8": "float-quantized", "int8": "int-quantized", "int4": "pack-quantized"}[kind],
        "ignore": IGNORED,
        "config_groups": {"group_0": group | {"targets": ["Linear"]}},
    }


def _int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights of 4 bits, eight in an int32, and the scales of groups of 32."""
    values, scale = _groups_of_32(weight)
    return _packed(values + 8), scale


def _groups_of_32(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights as numbers from -8 to 7, and the scales of groups of 32 in a row."""
    groups = weight.view(weight.shape[0], -1, 32)
    scale = groups.abs().amax(dim=-1, keepdim=True) / 7
    return (groups / scale).round().clamp(-8, 7).view_as(weight), scale.squeeze(-1)


def _packed(values: Tensor, order: Sequence[int] = range(8)) -> Tensor:
    """Return numbers from 0 to 15, eight in an int32, in that order from the lowest bits on."""
    eights = values.long().view(values.shape[0], -1, 8)[..., list(order)]
    packed = (eights << (4 * torch.arange(8))).sum(dim=-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def _text_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for name, weight in load_file(folder / "model.safetensors").items():
        if "language_model" in name and ".layers." in name and name.endswith("proj.weight"):
            yield name, weight


def _rewritten(folder: Path, changed: dict[str, Tensor], settings: dict[str, Any], packed: bool = False) -> Path:
    """Write changed weights and the quantisation to a checkpoint; ``packed`` weights have other names than before."""
    weights = load_file(folder / "model.safetensors")
    if packed:
        for name, _ in list(_text_weights(folder)):
            del weights[name]
    weights |= {name: weight.contiguous() for name, weight in changed.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder
