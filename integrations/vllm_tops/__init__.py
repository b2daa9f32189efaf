"""Prune pictures and videos in vLLM before the language model, in every vLLM process.

Install this package in vLLM's environment and run ``TOPS_KEEP=0.222 vllm serve llava-hf/llava-1.5-7b-hf``. vLLM finds
:func:`register` by its entry point. Without ``TOPS_KEEP``, vLLM is unchanged.
"""

import os

__all__ = ["register"]


def register() -> None:
    """Replace vLLM's models with pruned ones; vLLM calls this function once in each of its processes.

    Raises:
        SystemExit: If ``TOPS_KEEP`` or ``TOPS_METHOD`` is invalid, or vLLM has another version; one sentence gives the
            reason.
    """
    if not os.environ.get("TOPS_KEEP"):
        return
    # Imported late: these modules cost time and memory, which a vLLM without pruning does not need.
    from tops_engine.errors import TopsError
    from vllm_tops.models import replace_models
    from vllm_tops.orphans import end_with_parent
    from vllm_tops.settings import read_pruning
    from vllm_tops.versions import refuse_other_versions

    try:
        refuse_other_versions()
        read_pruning()
    except TopsError as error:
        raise SystemExit(f"TOPS: {error}") from None
    end_with_parent()
    replace_models()
    from vllm_tops.metrics import publish_pruning

    publish_pruning()
