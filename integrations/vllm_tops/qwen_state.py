"""The positions of a batch in vLLM's second model runner (``vllm/v1/worker/gpu``), for models of Qwen-VL."""

from typing import Any

from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.model_states.interface import ModelState
from vllm.v1.worker.gpu.model_states.mamba_hybrid import MambaHybridModelState


class KeptPositions(ModelState):
    """Give kept tokens their own positions before the forward pass, outside of CUDA graphs.

    In each step vLLM first embeds the tokens, which fills the model's buffer of coordinates
    (:meth:`vllm_tops.qwen_vl.PrunedQwen.embed_input_ids`), and then prepares their positions. A CUDA graph reads the
    same tensor of positions.
    """

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """Return the model's inputs, with the positions of kept tokens in those of the batch."""
        inputs: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
        self.model.add_coordinates(inputs["positions"])
        return inputs


class QwenState(KeptPositions, DefaultModelState):
    """The state of models whose layers all have attention."""


class HybridQwenState(KeptPositions, MambaHybridModelState):
    """The state of models that have layers with linear attention."""
