"""TOPS inside vLLM: pictures are pruned before the language model, in every vLLM process.

``TOPS_KEEP=0.222 vllm serve llava-hf/llava-1.5-7b-hf`` is all it takes where this package is installed beside vLLM,
which finds :func:`register` by its entry point. Without ``TOPS_KEEP`` vLLM is as it was.
"""

import os

__all__ = ["register"]


def register() -> None:
    """Put pruned models in the place of vLLM's own; vLLM calls this once in each of its processes.

    Raises:
        SystemExit: If ``TOPS_KEEP`` or ``TOPS_METHOD`` cannot be used, with one sentence that says why.
    """
    if not os.environ.get("TOPS_KEEP"):
        return
    # All of this costs time and memory that a vLLM which prunes nothing should not pay.
    from tops_engine.errors import TopsError
    from vllm_tops.models import replace_models
    from vllm_tops.settings import read_pruning

    try:
        read_pruning()
    except TopsError as error:
        raise SystemExit(f"TOPS: {error}") from None
    replace_models()
    from vllm_tops.metrics import publish_pruning

    publish_pruning()
