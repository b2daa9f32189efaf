"""Placeholders in a prompt: as many as remain of a picture, where vLLM's processor writes one for each token."""

from dataclasses import replace

from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems
from vllm.multimodal.processing import PromptReplacement, PromptUpdate, PromptUpdateDetails

from vllm_tops.requests import announced_tokens


def announce_kept(update: PromptUpdate, items: MultiModalDataItems) -> PromptUpdate:
    """The same update with the last placeholders of each picture left out, so that those for its kept tokens remain.

    Videos, and embeddings that a request brings along, keep all of theirs.
    """
    if update.modality != "image" or not isinstance(items.get("image"), ImageProcessorItems):
        return update
    assert isinstance(update, PromptReplacement)

    def kept(number: int) -> PromptUpdateDetails:
        details = update.resolve(number).content
        stand_in = details.is_embed
        placeholders = (
            range(len(details.full)) if stand_in is None else stand_in(details.full).nonzero().flatten().tolist()
        )
        dropped = set(placeholders[announced_tokens(len(placeholders)) :])
        return replace(details, full=[token for place, token in enumerate(details.full) if place not in dropped])

    return replace(update, replacement=kept)
