"""The same model run by transformers alone: the reference of the unpruned engine."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tops_engine.families import Family, Prompt


@dataclass(frozen=True)
class Generated:
    """An answer of transformers' ``generate``.

    Attributes
    ----------
    tokens : the tokens of the answer, the end token included.
    logits : float32 [q, vocab] on the CPU, the model's logits before each token, without any logits processor.
    """

    tokens: list[int]
    logits: Tensor


def forward_inputs(family: Family, prompt: Prompt) -> dict[str, Tensor]:
    """Return what the model's own forward takes for a prompt, on its device and in its precision."""
    device, dtype = family.decoder.device, family.decoder.dtype
    inputs = {
        name: value.to(device, dtype if value.is_floating_point() else None) for name, value in prompt.pixels.items()
    }
    inputs["input_ids"] = prompt.input_ids[None].to(device)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


@torch.inference_mode()
def generate(family: Family, prompt: Prompt, max_tokens: int) -> Generated:
    """Answer a prompt by transformers' ``generate``, which takes the most likely token at each step."""
    # Checkpoints set how to draw tokens; without these three, transformers warns that they are not used.
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    padding = family.tokenizer.pad_token_id
    output = family.model.generate(
        **forward_inputs(family, prompt),
        **greedy,
        max_new_tokens=max_tokens,
        pad_token_id=padding if padding is not None else 0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = output.sequences[0, len(prompt.input_ids) :].tolist()
    return Generated(tokens, torch.cat(output.logits).float().cpu())
