"""Write one placeholder into the prompt for each kept token, where vLLM writes one for each token."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems, VideoProcessorItems
from vllm.multimodal.processing import PromptReplacement, PromptUpdate, PromptUpdateDetails

from vllm_tops.requests import announced_tokens, counting


def announce_kept(update: PromptUpdate, items: MultiModalDataItems) -> PromptUpdate:
    """Return the update without the last placeholders of each picture or video, so that one for each kept one remains.

    The number of kept tokens of each frame is known only after the vision tower has run, but vLLM needs the places of
    text before. So the text between the frames of a video is announced as part of the video, and the model returns its
    embeddings with the kept tokens. Placeholders of embeddings that the request contains do not change.
    """
    if not isinstance(items.get(update.modality), (ImageProcessorItems, VideoProcessorItems)):
        return update
    assert isinstance(update, PromptReplacement)

    def kept(number: int) -> PromptUpdateDetails:
        details = update.resolve(number).content
        stand_in = details.is_embed
        placeholders = (
            range(len(details.full)) if stand_in is None else stand_in(details.full).nonzero().flatten().tolist()
        )
        dropped = set(placeholders[announced_tokens(len(placeholders)) :])
        full = [token for place, token in enumerate(details.full) if place not in dropped]
        return replace(details, full=full, is_embed=None if update.modality == "video" else stand_in)

    return counting(update, kept)


def with_text(update: PromptUpdate) -> PromptUpdate:
    """Return the update with every token marked as an embedding that the model returns."""

    def joined(number: int) -> PromptUpdateDetails:
        return replace(update.resolve(number).content, is_embed=None)

    return replace(update, replacement=joined)


def remaining(ids: Tensor, token: int, indices: Tensor) -> Tensor:
    """Return which tokens of an unpruned replacement remain: its text, and the kept visual tokens.

    Args:
        ids: The replacement, int64 ``[n]``.
        token: The id of its visual tokens.
        indices: The kept ones of these, int64 ``[k]``.

    Returns:
        bool ``[n]`` on the device of ``ids``.
    """
    is_text = ids != token
    stays = is_text.clone()
    stays[(~is_text).nonzero().flatten()[indices.to(ids.device)]] = True
    return stays


def among_text(ids: Tensor, token: int, kept: Tensor, embed: Any) -> Tensor:
    """Join embeddings of text and kept tokens in the order of a pruned replacement.

    Args:
        ids: The replacement, int64 ``[n]``.
        token: The id of its visual tokens.
        kept: The kept tokens, ``[k, c]``. What follows a token's embedding (deepstack features) is 0 for text.
        embed: Embeds text, ``[n]`` to ``[n, d]``.

    Returns:
        ``[n, c]``.
    """
    embeddings: Tensor = embed(ids)
    joined = torch.zeros(len(ids), kept.shape[1], dtype=embeddings.dtype, device=embeddings.device)
    joined[:, : embeddings.shape[1]] = embeddings
    joined[ids == token] = kept.to(embeddings.dtype)
    return joined
