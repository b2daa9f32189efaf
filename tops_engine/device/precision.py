"""Which precision a model runs in where nobody chose one."""

import torch

#: Hidden size of the language model from which on bfloat16 is faster on a CPU that computes in it, for reading prompts
#: and for writing: measured on an AMD EPYC (Zen 5) with one thread, benchmarks/NOTES.md.
BFLOAT16_FROM = 576


def computes_in_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 matrices in hardware (AVX512-BF16, AMX)."""
    # Older versions of torch do not say what a CPU can.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def automatic_dtype(device: torch.device, hidden_size: int) -> torch.dtype:
    """Return the precision of ``dtype="auto"``.

    Parameters
    ----------
    hidden_size : of the language model.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu" and hidden_size >= BFLOAT16_FROM and computes_in_bfloat16():
        return torch.bfloat16
    return torch.float32
