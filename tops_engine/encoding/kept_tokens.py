"""The visual tokens of pictures that remain before the language model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.errors import InvalidInput, TopsError
from tops_engine.families import Family
from tops_engine.methods import Selection, VisualTokens
from tops_engine.methods.base import with_dropped
from tops_engine.methods.resize import Resize
from tops_engine.settings import Pruning
from tops_engine.settings.allocation import divides_budget


@dataclass(frozen=True)
class KeptTokens:
    """The kept tokens of a picture.

    Attributes
    ----------
    indices : int64 [kept], their places among the picture's tokens.
    features : [kept, hidden size], as the language model gets them.
    unpruned : the number of the picture's tokens.
    """

    indices: Tensor
    features: Tensor
    unpruned: int


def for_encoder(pruning: Pruning, one_size: bool) -> Pruning:
    """Return the pruning as an encoder runs it: entirely before the language model, and without the question.

    Parameters
    ----------
    one_size : whether all pictures of the model have one number of tokens.

    Raises
    ------
    InvalidInput
        If an encoder cannot prune so, or pictures could keep different numbers of tokens.
    """
    if pruning.schedule is not None:
        raise InvalidInput("An encoder prunes before the language model, not by a schedule; set the budget by keep.")
    if len(pruning.steps) > 1 or pruning.cost_limit is not None:
        raise InvalidInput("A server reads a prompt once, with one budget; give keep a single value.")
    if divides_budget(pruning):
        raise InvalidInput("An encoder sees each picture alone; leave out allocation and budget_per.")
    if pruning.positions == "original":
        raise InvalidInput("The server numbers the remaining tokens without gaps; leave out positions=original.")
    pruning = pruning.before_the_llm()
    if reason := _refusal(pruning):
        raise InvalidInput(f"Method {pruning.label!r} {reason}; choose another method for an encoder.")
    if not one_size and isinstance(pruning.budget, float):
        raise InvalidInput(
            "Pictures of this model differ in their number of tokens, and vLLM ends when embedded pictures with "
            f"different numbers meet; in place of keep={pruning.budget} give a number of tokens, such as keep=128."
        )
    return pruning


def _refusal(pruning: Pruning) -> str | None:
    method = pruning.method_instance
    if method.prunes_between_layers:
        return "prunes inside the language model, which an encoder does not run"
    if isinstance(method, Resize):
        return "makes pictures smaller, which the sender can do"
    if not method.prunes_before_the_llm and pruning.budget != 1.0:
        return "prunes nothing"
    if method.reads_question:
        return "reads the question, which an encoder does not see"
    if method.adaptive:
        return "chooses a number of tokens for each picture, and vLLM ends when different numbers meet"
    return None


def kept_tokens(family: Family, pictures: Sequence[Image.Image], pruning: Pruning) -> list[KeptTokens]:
    """Return the kept tokens of each picture, each alone in a prompt.

    Parameters
    ----------
    pruning : as :func:`for_encoder` returns it.

    Raises
    ------
    InvalidInput
        If a picture has fewer tokens than ``keep`` demands, or the image processor refuses it.
    UnsupportedModel
        If the vision tower cannot leave out what the options say.
    """
    tower = pruning.tower_options
    family.check_tower(tower)
    prompts = [family.prepare(read_conversation([user_message("?", picture)])) for picture in pictures]
    with torch.inference_mode():
        images = [tokens for (tokens,) in family.encode(prompts, tower)]
        return [_pruned(image, pruning) for image in images]


def _pruned(image: VisualTokens, pruning: Pruning) -> KeptTokens:
    unpruned = image.layout.num_tokens
    if isinstance(pruning.budget, int) and pruning.budget > unpruned:
        raise InvalidInput(
            f"The picture has only {unpruned} visual tokens, and vLLM ends when embedded pictures with different "
            f"numbers of tokens meet; give keep={unpruned} or less for all pictures."
        )
    # All layers of vLLM's cache see the same number of tokens, so that it is the layer-average.
    count = pruning.stages(unpruned, num_layers=1)[0].num_tokens
    remaining = image.remaining()
    if count < image.num_remaining:
        (chosen,) = pruning.method_instance.select_visual([remaining], [count])
        if pruning.merge:
            chosen = with_dropped(remaining, chosen)
    else:
        chosen = Selection(torch.arange(image.num_remaining, device=image.features.device))
    features = remaining.features[chosen.indices] if chosen.features is None else chosen.features
    if len(features) != count:
        raise TopsError(
            f"Method {pruning.method!r} was asked for {count} tokens, and {len(features)} are left of the picture; "
            "keep fewer, or leave out tower_keep."
        )
    indices = chosen.among(image.survivors).indices
    return KeptTokens(indices, features.to(image.features.dtype), unpruned)
