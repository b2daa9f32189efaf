"""Write one placeholder into the prompt for each kept token of a picture, where vLLM writes one for each token."""

from dataclasses import replace

from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems
from vllm.multimodal.processing import PromptReplacement, PromptUpdate, PromptUpdateDetails

from vllm_tops.requests import announced_tokens


def announce_kept(update: PromptUpdate, items: MultiModalDataItems) -> PromptUpdate:
    """Return the update without the last placeholders of each picture, so that one for each kept token remains.

    Placeholders of videos and of embeddings that the request contains do not change.
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
        dropped = set(placeholders[announced_tokens(len(placeholders), number) :])
        return replace(details, full=[token for place, token in enumerate(details.full) if place not in dropped])

    return replace(update, replacement=kept)
