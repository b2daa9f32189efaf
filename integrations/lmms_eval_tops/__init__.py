"""The engine as a model of lmms-eval, and the protocols of the papers.

Install this package in lmms-eval's environment (``make eval``) and run ``lmms-eval eval --model tops --model_args
model=llava-hf/llava-1.5-7b-hf,keep=0.222 --tasks pope``. lmms-eval finds :func:`manifest` by its entry point.
"""

from typing import Any

__all__ = ["manifest"]


def manifest() -> Any:
    """Return the ``ModelManifest`` of the model ``tops``; lmms-eval calls this when it starts."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="tops", chat_class_path="lmms_eval_tops.model.TopsModel")
