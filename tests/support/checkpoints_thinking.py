"""Make a small random checkpoint a thinking model: the tokens around its reasoning, and a chat template with them."""

from pathlib import Path
from typing import Literal

from tokenizers import AddedToken
from transformers import AutoTokenizer

from tests.support.checkpoints import CHAT_TEMPLATE, save_llava, small_tokenizer
from tops_engine.engine import Engine

ANSWERS = "{{ 'ASSISTANT:' }}{% endif %}"
#: Ends of chat templates after the last message.
ENDS = {
    # Qwen3-VL-Thinking: always begins the reasoning.
    "opened": "{{ 'ASSISTANT:<think>\n' }}{% endif %}",
    # Qwen3.5 and GLM-4.5V: begins the reasoning, or writes an empty one.
    "switched": (
        "{{ 'ASSISTANT:' }}{% if enable_thinking is defined and enable_thinking is false %}"
        "{{ '<think>\n\n</think>\n\n' }}{% else %}{{ '<think>\n' }}{% endif %}{% endif %}"
    ),
    # GLM-4.1V-Thinking: the model begins the reasoning, and the template knows its marks from earlier turns.
    "by itself": "{{ 'ASSISTANT:' }}{% endif %}{# a turn is written without what stands before </think> #}",
    # An instruction model with the same vocabulary.
    "not": ANSWERS,
}
Thinks = Literal["opened", "switched", "by itself", "not"]


def save_thinking(folder: Path, thinks: Thinks, marks: tuple[str, str] = ("<think>", "</think>")) -> Path:
    """Save a LLaVA checkpoint that thinks; its vocabulary ends with the two marks."""
    save_llava(folder, vocab_size=len(small_tokenizer()) + 2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])
    tokenizer.save_pretrained(folder)
    assert CHAT_TEMPLATE.endswith(ANSWERS)
    template = CHAT_TEMPLATE.removesuffix(ANSWERS) + ENDS[thinks]
    (folder / "chat_template.jinja").write_text(template)
    return folder


def write_instead(engine: Engine, mark: str, token: int) -> None:
    """Make the model write a mark wherever it would write ``token``."""
    family = engine.family
    weight = family.model.lm_head.weight.data
    weight[family.tokenizer.convert_tokens_to_ids(mark)] = 1.05 * weight[token]
