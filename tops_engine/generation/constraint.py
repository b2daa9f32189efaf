"""Answers that follow a grammar: at each step only tokens from which the grammar can still be completed."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tops_engine.errors import InvalidInput, TopsError, reason_of
from tops_engine.generation.grammars import check_grammar
from tops_engine.generation.reasoning import ReasoningState

# A text takes at most this share of the tokens left when it begins: other texts, brackets and keys need the rest.
TEXT_SHARE = 3

# What completes the innermost part of a JSON text, the widest first.
CLOSING_MARKS = ("}", "]", '"', ",")

# Only inside a text may both of these follow.
IN_TEXT = {'"', ","}

_tokenizers: WeakKeyDictionary[Any, dict[tuple[int, frozenset[int]], Any]] = WeakKeyDictionary()


class Constraint:
    """The grammar of a batch of answers, and the state of each answer in it.

    Parameters
    ----------
    grammar : Lark text, such as :func:`~tops_engine.generation.grammars.json_grammar` writes.
    tokenizer : the checkpoint's, a fast one.
    eos_token_ids : tokens that may end a complete answer.
    max_tokens : of each answer of the batch. No text in it takes more than a third of the tokens that were left when
        it began, so that a model that never stops by itself completes its answer, too.
    reasoning : where each answer stands; this object feeds the states. The grammar begins behind the reasoning.
    is_json : whether the answers are JSON or plain text. In another notation long texts cannot be ended.

    Raises
    ------
    InvalidInput
        If the grammar cannot be followed: an unknown keyword, nothing that satisfies it.
    MissingDependency
        If llguidance is not installed.
    """

    def __init__(
        self,
        grammar: str,
        tokenizer: Any,
        eos_token_ids: frozenset[int],
        max_tokens: Sequence[int],
        reasoning: Sequence[ReasoningState] | None = None,
        is_json: bool = True,
    ) -> None:
        check_grammar(grammar)
        self._is_json = is_json
        self._reasoning: Sequence[ReasoningState | None] = reasoning or [None] * len(max_tokens)
        self._grammar = grammar
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._tokens_left = list(max_tokens)
        self._texts = [_TextState() for _ in max_tokens]
        self._matchers: list[Any] = []

    def __call__(self, input_ids: Tensor | None, scores: Tensor) -> Tensor:
        """Rule out tokens, as a logits processor of transformers does: float32 [B, vocab] -> the same."""
        vocab_size = scores.shape[-1]
        if not self._matchers:
            self._start(vocab_size)
        for index, (matcher, row) in enumerate(zip(self._matchers, self._bits, strict=True)):
            if matcher.is_stopped() or self._thinks(index):
                row.fill_(-1)
            else:
                matcher.unsafe_compute_mask_ptr(row.data_ptr(), row.numel() * row.element_size())
                self._end_long_text(index)
        bits = self._bits.to(scores.device, non_blocking=True)
        shifts = torch.arange(32, device=bits.device, dtype=bits.dtype)
        allowed = ((bits[..., None] >> shifts) & 1).bool().flatten(1)[:, :vocab_size]
        ruled = self._ends_as_closings(scores, allowed)
        for index, state in enumerate(self._reasoning):
            if state is not None and state.tokens is not None:
                if state.inside:
                    # An answer that ended in its reasoning would lack what the grammar asks for.
                    allowed[index, [token for token in self._eos_token_ids if token < vocab_size]] = False
                    ruled[index] = scores[index]
                elif state.may_begin:
                    allowed[index, state.tokens.begin] = True
        return ruled.masked_fill(~allowed, float("-inf"))

    def accept(self, tokens: Tensor) -> None:
        """Note the tokens just chosen, int64 [B]."""
        for index, (matcher, token) in enumerate(zip(self._matchers, tokens.tolist(), strict=True)):
            self._tokens_left[index] -= 1
            state = self._reasoning[index]
            if state is not None and state.push(token) != "answer":
                continue
            if not matcher.is_stopped():
                matcher.consume_token(token)
                self._texts[index].read(self._decode([token]))
            if matcher.is_error():
                raise TopsError(f"The grammar cannot be followed any further: {reason_of(matcher.get_error())}.")

    def finished(self, row: int) -> bool:
        """Return whether no token can follow in this answer."""
        return bool(self._matchers[row].is_stopped())

    def _thinks(self, row: int) -> bool:
        state = self._reasoning[row]
        return state is not None and state.inside

    def _end_long_text(self, row: int) -> None:
        """Allow only the closing mark in a text that has taken its share of the tokens, as soon as the grammar does."""
        if not self._is_json:
            return
        bits, text = self._bits[row], self._texts[row]
        ends = [token for token in self._eos_token_ids if token < 32 * len(bits)]
        if any(_has_bit(bits, token) for token in ends):
            # The answer is not JSON, or it is complete.
            text.reset()
            return
        quote = self._marks.get('"')
        if not text.is_open or quote is None:
            return
        if text.tokens_left is None:
            text.tokens_left = max(1, self._tokens_left[row] // TEXT_SHARE)
        else:
            text.tokens_left -= 1
        if text.tokens_left < 1 and not text.is_escaped and _has_bit(bits, quote):
            bits.zero_()
            bits[quote // 32] = _bit(quote)

    def _ends_as_closings(self, scores: Tensor, allowed: Tensor) -> Tensor:
        """Let a model that would end its answer too early end the text, list, number or object that it is in.

        Models that know little JSON finish their text and stop; without this they would have to write more text.
        """
        ends = [token for token in self._eos_token_ids if token < scores.shape[-1]]
        if not ends or not self._marks or not self._is_json:
            return scores
        scores = scores.clone()
        wish = scores[:, ends].amax(dim=1)
        granted = allowed[:, ends].any(dim=1)
        # Inside a text the brackets are text as well.
        in_text = torch.stack([allowed[:, self._marks[mark]] for mark in IN_TEXT]).all(dim=0)
        for mark, token in self._marks.items():
            here = allowed[:, token] & ~granted & (in_text if mark == '"' else ~in_text)
            scores[:, token] = torch.where(here, torch.maximum(scores[:, token], wish), scores[:, token])
            granted |= here
        return scores

    def _start(self, vocab_size: int) -> None:
        from llguidance import LLMatcher

        tokenizer = _grammar_tokenizer(self._tokenizer, vocab_size, self._eos_token_ids)
        prototype = LLMatcher(tokenizer, self._grammar)
        if prototype.is_error():
            raise InvalidInput(f"The grammar cannot be followed: {reason_of(prototype.get_error())}.")
        self._matchers = [prototype.deep_copy() for _ in self._tokens_left]
        self._decode = tokenizer.decode_bytes
        marks = {mark: tokenizer.greedy_tokenize(mark) for mark in CLOSING_MARKS}
        single = all(len(tokens) == 1 and tokens[0] < vocab_size for tokens in marks.values())
        self._marks = {mark: tokens[0] for mark, tokens in marks.items()} if single else {}
        self._bits = torch.zeros(len(self._matchers), -(-tokenizer.vocab_size // 32), dtype=torch.int32)


class _TextState:
    """The state of a text in an answer in JSON.

    Attributes
    ----------
    is_open : whether a text has begun and not ended.
    is_escaped : whether the next character is part of the text whatever it is, because it follows a backslash.
    tokens_left : how many tokens the text may still take; None if it has not been decided.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.is_open = self.is_escaped = False
        self.tokens_left: int | None = None

    def read(self, written: bytes) -> None:
        for byte in written:
            if self.is_escaped:
                self.is_escaped = False
            elif byte == ord('"'):
                self.is_open = not self.is_open
                self.tokens_left = None
            elif byte == ord("\\"):
                self.is_escaped = self.is_open


def _grammar_tokenizer(tokenizer: Any, vocab_size: int, eos_token_ids: frozenset[int]) -> Any:
    """Return the grammar library's tokenizer, made once. The head is often wider than the tokenizer's vocabulary."""
    from llguidance.hf import from_tokenizer

    views = _tokenizers.setdefault(tokenizer, {})
    key = (max(vocab_size, len(tokenizer)), eos_token_ids)
    if key not in views:
        known = sorted(token for token in eos_token_ids if token < key[0])
        views[key] = from_tokenizer(tokenizer, n_vocab=key[0], eos_token=known or None)
    return views[key]


def _has_bit(bits: Tensor, token: int) -> bool:
    return bool(int(bits[token // 32]) & _bit(token))


def _bit(token: int) -> int:
    """Return the bit of a token in its int32."""
    bit = 1 << (token % 32)
    return bit if bit < 2**31 else bit - 2**32
