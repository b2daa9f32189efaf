"""A report on this machine: versions, devices, memory, optional packages and how to install them."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from dataclasses import dataclass
from typing import Literal

import torch

from tops_engine.dependencies import REQUIRED, unsupported_version
from tops_engine.device.memory import MEMORY_SHARE, total_memory
from tops_engine.device.precision import BFLOAT16_FROM, computes_in_bfloat16
from tops_engine.version import __version__

State = Literal["ok", "missing", "note"]

#: Required packages that the report lists; others only if their version is not supported.
SHOWN = ("torch", "transformers", "tokenizers", "accelerate")

# (module, distribution, what it is for, how to get it)
OPTIONAL = (
    (
        "flash_attn",
        "flash-attn",
        "FlashAttention (attention='flash_attention_2'), on NVIDIA GPUs",
        "pip install flash-attn",
    ),
    ("bitsandbytes", "bitsandbytes", "4- and 8-bit weights, on GPUs", "pip install 'tops-engine[quantization]'"),
    ("llguidance", "llguidance", "answers by a JSON schema", "pip install 'tops-engine[structured]'"),
    ("av", "av", "video files", "pip install 'tops-engine[video]'"),
    ("pillow_heif", "pillow-heif", "HEIC pictures", "pip install 'tops-engine[heic]'"),
    ("openai", "openai", "models behind servers (--server, base_url)", "pip install 'tops-engine[server]'"),
    ("sklearn", "scikit-learn", "`tops bench`", "pip install 'tops-engine[bench]'"),
    ("skimage", "scikit-image", "`tops bench`", "pip install 'tops-engine[bench]'"),
    ("matplotlib", "matplotlib", "plots", "pip install 'tops-engine[bench]'"),
    ("pynvml", "nvidia-ml-py", "energy in `tops verify`, on NVIDIA GPUs", "pip install 'tops-engine[energy]'"),
    ("lmms_eval", "lmms-eval", "`tops reproduce`", "make eval, or pip install 'tops-engine[eval]'"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the report: a topic, what was found, and whether something is missing."""

    topic: str
    text: str
    state: State = "ok"


def examine() -> list[Finding]:
    """Look at the machine without loading a model."""
    findings = [
        Finding("tops-engine", __version__),
        Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
    ]
    findings += [_required(text) for text in REQUIRED if text.startswith(SHOWN) or unsupported_version(text)]
    findings += _devices()
    findings += [_memory(), _caches(), _mini(), _hub()]
    for module, distribution, purpose, remedy in OPTIONAL:
        if importlib.util.find_spec(module) is None:
            findings.append(Finding(distribution, f"not installed; for {purpose}: {remedy}", "missing"))
        else:
            findings.append(Finding(distribution, f"{importlib.metadata.version(distribution)}, for {purpose}"))
    return findings


def _required(required: str) -> Finding:
    name, _, least = required.partition(">=")
    installed = importlib.metadata.version(name)
    if unsupported_version(required):
        return Finding(name, f"{installed}, but {least} or newer is needed: pip install '{required}'", "missing")
    return Finding(name, installed)


def _devices() -> list[Finding]:
    threads = f"{torch.get_num_threads()} threads"
    features = torch.backends.cpu.get_cpu_capability()
    if computes_in_bfloat16():
        features += f", bfloat16 (dtype=auto takes it for models of hidden size {BFLOAT16_FROM} and more)"
    findings = [Finding("cpu", f"{platform.processor() or platform.machine()}, {threads}, {features}, usable")]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            findings.append(
                Finding(
                    f"cuda:{index}",
                    f"{torch.cuda.get_device_name(index)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, usable",
                )
            )
    elif torch.version.cuda is None:
        findings.append(
            Finding("cuda", "this torch has no CUDA support; for a GPU install torch from pytorch.org", "note")
        )
    else:
        findings.append(Finding("cuda", f"torch is built for CUDA {torch.version.cuda} but finds no GPU", "note"))
    if torch.backends.mps.is_available():
        findings.append(Finding("mps", "Apple GPU, usable"))
    return findings


def _memory() -> Finding:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        free, total = os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page
    except (ValueError, OSError, AttributeError):
        return Finding("memory", "unknown on this system", "note")
    return Finding("memory", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free")


def _caches() -> Finding:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    share = MEMORY_SHARE * total_memory(device)
    bound = f"up to {share / 2**20:.0f} MiB for each model on {device}"
    if device.type != "cuda":
        bound += ", and no more than its weights"
    # Importing the engine takes seconds, and before that no model is loaded.
    engine = sys.modules.get("tops_engine.engine")
    held = engine.shared_cache_bytes() / 2**20 if engine is not None else 0.0
    return Finding("caches", f"{bound} (cache_mb sets another bound); {held:.1f} MiB held in this process")


def _mini() -> Finding:
    from tops_engine.mini import mini_path

    weights = mini_path() / "model.safetensors"
    if not weights.is_file():
        return Finding("mini", "the embedded model's weights are not there; reinstall tops-engine", "missing")
    return Finding("mini", f"embedded model, {weights.stat().st_size / 2**20:.1f} MiB, usable")


def _hub() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding("hub", "offline (HF_HUB_OFFLINE is set): only checkpoints already on this machine", "note")
    from huggingface_hub.constants import HF_HUB_CACHE

    return Finding("hub", f"checkpoints by name are kept in {HF_HUB_CACHE}")
