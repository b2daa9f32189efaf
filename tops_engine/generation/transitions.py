"""How much the two parts of a decoder layer change its tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tops_engine.device.transfer import to_device
from tops_engine.errors import UnsupportedModel
from tops_engine.families import Decoder
from tops_engine.families.parts.vision_signals import Call, captured_calls

#: How transformers names the part of a layer that mixes tokens, and the part that works on each token.
MIXERS, FEED_FORWARDS = ("self_attn", "linear_attn", "conv"), ("mlp", "feed_forward", "block_sparse_moe")


@contextmanager
def watched_layer(decoder: Decoder, layer: int) -> Iterator[Sequence[Call]]:
    """Record the calls of the two parts of a decoder layer while the block runs.

    Raises
    ------
    UnsupportedModel
        If the layer has no such parts.
    """
    block = decoder.text_model.layers[layer]
    with captured_calls(_part(block, MIXERS), _part(block, FEED_FORWARDS)) as calls:
        yield calls


def token_transitions(calls: Sequence[Call], lengths: Sequence[int]) -> Tensor:
    """Return how much the parts of a layer changed each token (TransPrune, arXiv 2507.20630).

    The transition of a part is the ratio of the lengths of its output and input, times the exponential of one minus
    their cosine, which is divided by its sum over the tokens of the sequence. Those of the two parts are added.

    Parameters
    ----------
    lengths : tokens of each sequence; the others are padding.

    Returns
    -------
    float32 [B, n], 0 for padding.
    """
    return sum((_transition(call, lengths) for call in calls), torch.tensor(0.0))


def _transition(call: Call, lengths: Sequence[int]) -> Tensor:
    before = (call.input if call.arguments else call.keywords["hidden_states"]).float()
    output = call.output[0] if isinstance(call.output, tuple) else call.output
    after = output.view(before.shape).float()
    turned = (1 - torch.cosine_similarity(before, after, dim=-1)).exp()
    slots = torch.arange(before.shape[1], device=before.device)
    real = slots < to_device(torch.tensor(lengths), before.device)[:, None]
    turned = turned * real
    ratio = after.norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12)
    return ratio * turned / turned.sum(dim=1, keepdim=True)


def _part(block: nn.Module, names: Sequence[str]) -> nn.Module:
    for name in names:
        part = getattr(block, name, None)
        if isinstance(part, nn.Module):
            return part
    raise UnsupportedModel("The layers of this model do not have the parts that the pruning method watches.")
