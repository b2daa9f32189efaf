"""The formats in which models write function calls, and which one a checkpoint writes."""

from collections.abc import Collection

from tops_engine.conversation.tool_formats.base import Rules, ToolFormat
from tops_engine.conversation.tool_formats.gemma import Gemma
from tops_engine.conversation.tool_formats.hermes import Hermes, InternLM
from tops_engine.conversation.tool_formats.mistral import MistralList, MistralNamed
from tops_engine.conversation.tool_formats.pythonic import Pythonic
from tops_engine.conversation.tool_formats.tagged import GLM, QwenXML

__all__ = ["DEFAULT", "FORMATS", "Rules", "ToolFormat", "format_of"]

DEFAULT: ToolFormat = Hermes()

#: The first whose marks are in a template decides.
FORMATS: tuple[ToolFormat, ...] = (
    Gemma(),
    GLM(),
    QwenXML(),
    Pythonic(),
    MistralNamed(),
    MistralList(),
    InternLM(),
    DEFAULT,
)


def format_of(template: str, vocabulary: Collection[str]) -> ToolFormat:
    """Return the format of a checkpoint: that of its chat template.

    If the template knows no functions, it is the one whose marks are tokens of the vocabulary, and otherwise Hermes.

    Parameters
    ----------
    vocabulary : the tokens that were added to the tokenizer.
    """
    for each in FORMATS:
        if each.is_in(template):
            return each
    marks = {
        "[ARGS]": MistralNamed,
        "[TOOL_CALLS]": MistralList,
        "<|tool_call_start|>": Pythonic,
        "<|plugin|>": InternLM,
    }
    kind = next((kind for mark, kind in marks.items() if mark in vocabulary), Hermes)
    return next(each for each in FORMATS if type(each) is kind)
