"""Which models vLLM serves from embedded pictures, and why not the others."""

from tops_engine.errors import UnsupportedModel, listed, quote
from tops_engine.families import Family

#: Model types that vLLM 0.32 serves from embedded pictures with the answers of the pictures themselves.
SERVED = ("internvl", "llava", "llava_next", "llava_onevision")

#: Why vLLM 0.32 does not serve other models from embedded pictures, as read in its classes of these models.
REFUSED = {
    "aya_vision": "vLLM has no class for it that takes them",
    "cohere2_vision": "vLLM's class refuses them",
    "gemma3": "vLLM's class refuses them",
    "gemma4": "vLLM's class refuses them",
    "idefics3": "vLLM's class counts the placeholders by the size of a picture, which embeddings do not have",
    "mistral3": "vLLM's class counts the placeholders by the size of a picture, which embeddings do not have",
    "smolvlm": "vLLM's class counts the placeholders by the size of a picture, which embeddings do not have",
    "minicpmv4_6": "vLLM's class needs the tiles of the picture beside them",
    "minicpmv4_7": "vLLM's class needs the tiles of the picture beside them",
    "paligemma": "the tokens of its pictures were not compared with vLLM's",
}


def check_served(name: str, family: Family) -> None:
    """Refuse a model that vLLM does not serve from embedded pictures.

    Parameters
    ----------
    name : what the user calls the checkpoint.

    Raises
    ------
    UnsupportedModel
        If it does not; the message gives the reason.
    """
    model_type = str(family.model.config.model_type)
    if model_type in SERVED:
        return
    if family.position_axes > 1:
        reason = (
            "its positions follow the rows and columns of the picture, and vLLM computes them from the grid of all "
            "tokens, which pruned embeddings no longer have"
        )
    else:
        reason = REFUSED.get(model_type, "vLLM's class was not shown to take them")
    raise UnsupportedModel(
        f"Encoded pictures of {quote(name)} ({model_type}) cannot be served: {reason}. Models that can: "
        f"{listed(SERVED)}; `tops serve` prunes others in vLLM itself."
    )
