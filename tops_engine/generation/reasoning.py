"""Separate the reasoning of a thinking model from its answer, token by token, and bound its length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from tops_engine.conversation.thinking import MARKS
from tops_engine.errors import UnsupportedModel, quote

#: What a token is: one of the marks or a label, a part of the reasoning, or of the answer.
Part = Literal["mark", "reasoning", "answer"]


@dataclass(frozen=True)
class ReasoningTokens:
    """The tokens around the reasoning, as a checkpoint's tokenizer knows them.

    Attributes
    ----------
    begin, end : their ids.
    label : the text after the first mark that does not belong to the reasoning.
    tokenizer : the checkpoint's.
    """

    begin: int
    end: int
    label: str
    tokenizer: Any

    @classmethod
    def of(cls, tokenizer: Any) -> "ReasoningTokens | None":
        """Return the first pair that the vocabulary holds; None if the model has no such tokens."""
        find = tokenizer.backend_tokenizer.token_to_id
        for marks in MARKS:
            begin, end = find(marks.begin), find(marks.end)
            if begin is not None and end is not None:
                return cls(begin, end, marks.label, tokenizer)
        return None

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=False))

    def left_open(self, prompt_ids: Tensor) -> bool:
        """Return whether a prompt, int64 [N], ends with the first mark: the chat template began the reasoning."""
        begins = (prompt_ids == self.begin).nonzero()
        return len(begins) > 0 and self._is_blank(prompt_ids[int(begins[-1]) + 1 :].tolist())

    def _is_blank(self, token_ids: Sequence[int]) -> bool:
        return not self.decode(token_ids).removeprefix(self.label).strip()


class ReasoningState:
    """Where an answer stands: before, in or behind its reasoning.

    Parameters
    ----------
    tokens : the marks; None for a model without them.
    prompt_ids : int64 [N].

    Attributes
    ----------
    inside : whether the next token is part of the reasoning.
    may_begin : whether the reasoning may still begin: nothing but white space was written.
    num_tokens : tokens of the reasoning so far, without its marks.
    """

    def __init__(self, tokens: ReasoningTokens | None, prompt_ids: Tensor) -> None:
        self.tokens = tokens
        self.inside = tokens is not None and tokens.left_open(prompt_ids)
        self.may_begin = tokens is not None and not self.inside
        self.num_tokens = 0
        self._label: list[int] | None = None

    def push(self, token: int) -> Part:
        """Take the next token and return what it is."""
        if self.tokens is None:
            return "answer"
        if self.inside:
            return self._inside(self.tokens, token)
        if self.may_begin and token == self.tokens.begin:
            self.inside, self.may_begin, self._label = True, False, []
            return "mark"
        self.may_begin = self.may_begin and not self.tokens.decode([token]).strip()
        return "answer"

    def _inside(self, tokens: ReasoningTokens, token: int) -> Part:
        if token == tokens.end:
            self.inside = False
            return "mark"
        if self._label is not None and tokens.label:
            self._label.append(token)
            if tokens.label.startswith(tokens.decode(self._label)):
                return "mark"
        self._label = None
        self.num_tokens += 1
        return "reasoning"


class ReasoningBudget:
    """Ends the reasoning of each answer of a batch after a number of tokens, as a logits processor of transformers.

    Parameters
    ----------
    states : of the answers; this object feeds them.
    max_tokens : of the reasoning.

    Raises
    ------
    UnsupportedModel
        If the model has no tokens around its reasoning.
    """

    def __init__(self, states: Sequence[ReasoningState], max_tokens: int) -> None:
        if any(state.tokens is None for state in states):
            raise UnsupportedModel(
                f"thinking={quote(max_tokens)} bounds the reasoning of a thinking model, and this model has no tokens "
                "around its reasoning; leave thinking unset."
            )
        self._states = states
        self._max_tokens = max_tokens

    def __call__(self, input_ids: Tensor | None, scores: Tensor) -> Tensor:
        """Allow only the end of the reasoning where it has taken all its tokens: float32 [B, vocab] -> the same."""
        spent = [state.inside and state.num_tokens >= self._max_tokens for state in self._states]
        if not any(spent):
            return scores
        scores = scores.clone()
        for row, state in zip(range(len(spent)), self._states, strict=True):
            if spent[row] and state.tokens is not None:
                scores[row] = float("-inf")
                scores[row, state.tokens.end] = 0.0
        return scores

    def accept(self, tokens: Tensor) -> None:
        """Note the tokens just chosen, int64 [B]."""
        for state, token in zip(self._states, tokens.tolist(), strict=True):
            state.push(token)
