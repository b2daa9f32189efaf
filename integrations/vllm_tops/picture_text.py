"""Pictures whose tokens have text between them that is always kept: tiles of Idefics3, rows of Mistral 3.

The number of kept tokens between two texts is known only after the vision tower has run, but vLLM needs the places of
text before. So the text is announced as part of the picture, and the model returns its embeddings with the kept tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageProcessorItems

from tops_engine.budget import Keep
from tops_engine.methods import VisualTokens
from vllm_tops.placeholders import among_text, announce_kept, remaining, with_text
from vllm_tops.requests import KeepPerRequest
from vllm_tops.tower import kept_features, select

#: The name of a picture's tokens with the text between them, among the arguments of the model.
TEXT = "image_text"


class AnnouncesText(KeepPerRequest):
    """A processor that announces the kept tokens of a picture and the text between them, and passes both to the model.

    A family lists it before vLLM's own processor.
    """

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        processed = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        if isinstance(mm_items.get("image"), ImageProcessorItems):
            (update,) = super()._get_prompt_updates(mm_items, hf_kwargs, {})
            num_pictures = mm_items.get_count("image")
            processed[TEXT] = [torch.tensor(update.resolve(n).content.full) for n in range(num_pictures)]
        return processed

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, TEXT: MultiModalFieldConfig.batched("image")}

    def _get_prompt_updates(self, mm_items: Any, *args: Any, **processed: Any) -> Sequence[Any]:
        (update,) = super()._get_prompt_updates(mm_items, *args, **processed)
        return [with_text(announce_kept(update, mm_items))]


def kept_among_text(
    texts: Sequence[Tensor],
    image_token: int,
    images: Sequence[VisualTokens],
    keeps: Sequence[Keep],
    embed: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """Select tokens of pictures, and join them with the embeddings of the text between them.

    Args:
        texts: Of each picture, the tokens of the unpruned picture and its text, int64 ``[n]``.
        image_token: The id of those that are the picture's.
        images: The visual tokens of each picture.
        keeps: The budget of each picture.
        embed: Function from ids to embeddings.

    Returns:
        ``[n', d]`` for each picture, in the order of the prompt.
    """
    joined = []
    for ids, image, selection in zip(texts, images, select(images, keeps), strict=True):
        stays = remaining(ids, image_token, selection.indices)
        joined.append(among_text(ids[stays], image_token, kept_features(image, selection), embed))
    return joined
