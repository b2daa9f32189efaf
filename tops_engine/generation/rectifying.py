"""Attention of the prompt as it would be if no visual token had been dropped (RESTORE, arXiv 2606.01711)."""

import torch
from torch import Tensor

from tops_engine import selection
from tops_engine.device.transfer import to_device
from tops_engine.errors import UnsupportedModel
from tops_engine.families import Decoder
from tops_engine.generation.batch_state import BatchState
from tops_engine.methods import Selection, VisualTokens


def check_rectifiable(decoder: Decoder) -> None:
    """Refuse a model whose attention cannot be rectified.

    Raises
    ------
    UnsupportedModel
        If the model was loaded with flash attention, or its last layers read the keys of others.
    """
    if decoder.attention.startswith("flash"):
        raise UnsupportedModel("Flash attention takes no bias, which rectify adds; load the model with attention=sdpa.")
    if not decoder.layers_stand_alone:
        raise UnsupportedModel("rectify needs layers that keep their own keys, which this model does not have.")


def num_chosen(image: VisualTokens, count: int) -> int:
    """Return how many of ``count`` tokens the method chooses: half; the others stand for what it drops."""
    num_shown = int(image.layout.shows_picture.sum())
    return count if count > num_shown else max(1, count // 2)


def with_groups(image: VisualTokens, chosen: Selection, count: int) -> Selection:
    """Return ``count`` tokens: those that a method chose, and one for each group of the others.

    A group stands at its token in the middle, with the mean of its features and the number of its tokens.
    """
    num_groups = count - len(chosen.indices)
    kept = chosen.indices
    if num_groups == 0:
        return chosen
    shown = to_device(image.layout.shows_picture, kept.device)
    dropped = selection.others(kept, len(image.features))
    dropped = dropped[shown[dropped]]
    groups = selection.distinctive_groups(image.features[dropped], num_groups)
    own = image.features[kept] if chosen.features is None else chosen.features
    indices, order = torch.cat([kept, dropped[groups.places]]).sort()
    sizes = torch.cat([torch.ones_like(kept, dtype=torch.float32), groups.sizes])
    return Selection(indices, features=torch.cat([own, groups.features.to(own.dtype)])[order], sizes=sizes[order])


def rectified_mask(state: BatchState, layer_type: str, first_layer: bool) -> Tensor:
    """Return the mask of layers of a type over the whole prompt, with the bias that gives back lost attention.

    The bias of a token is the logarithm of the number of tokens that it stands for (in the first layer, of all visual
    tokens divided by those that remain), plus that of 2 minus the mean cosine of the rotary angles between the two
    tokens, which grows with their distance. Sequences that keep all visual tokens get none.

    Returns
    -------
    [B, 1, n, n], additive, in the dtype of the hidden states.
    """
    decoder, like = state.decoder, state.hidden
    batch, length = like.shape[:2]
    sizes, rectified = torch.ones(batch, length, device=like.device), torch.zeros(batch, device=like.device)
    for index, sequence in enumerate(state.sequences):
        for image in sequence.images:
            if image.sizes is not None:
                share = image.tokens.layout.num_tokens / len(image.slots)
                sizes[index, image.slots] = share if first_layer else image.sizes
                rectified[index] = 1
    cos, sin = (part.float() for part in state.rope(layer_type)[:2])
    near = (cos @ cos.mT + sin @ sin.mT) / (cos.square() + sin.square()).sum(dim=-1, keepdim=True)
    bias = (sizes.log()[:, None] + (2 - near.clamp_max(1)).log()) * rectified[:, None, None]
    slots = torch.arange(length, device=like.device)
    visible = decoder.visible(layer_type, slots, slots, state.picture_numbers()).view(-1, 1, length, length)
    lowest = torch.finfo(like.dtype).min
    return bias[:, None].to(like.dtype).masked_fill(~visible, lowest)
