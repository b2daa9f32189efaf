"""mini: a small LLaVA trained from scratch, shipped so that everything runs offline and pruning can be measured."""

from pathlib import Path

__all__ = ["mini_path"]


def mini_path() -> Path:
    """Return the folder that holds mini's weights, tokenizer, processor and card.

    Load it with ``AutoProcessor.from_pretrained`` and ``LlavaForConditionalGeneration.from_pretrained``.
    """
    return Path(__file__).resolve().parent / "weights"
