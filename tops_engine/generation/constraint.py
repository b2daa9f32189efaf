"""Answers that follow a grammar: at each step only tokens from which the grammar can still be completed.

The grammars are Lark texts in the dialect of llguidance (an optional package), which may hold ``%json {...}`` schemas.
"""

import json
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tops_engine.errors import InvalidInput, MissingDependency, TopsError

# Numbers end, too: this many digits are exact in a float64.
MAX_NUMBER = 10**15
MAX_ITEMS = 16

# A text takes at most this part of the tokens left when it begins: the others need some, and so do brackets and keys.
TEXT_SHARE = 3

# Formats of JSON Schema the grammar library knows; any other is an annotation, as the standard says.
FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uri uuid unknown".split())

# As json.dumps writes it, which is what models have read.
JSON_STYLE: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

# What completes the innermost part of a JSON text, the widest first.
CLOSING_MARKS = ("}", "]", '"', ",")

# Only inside a text may both of these follow.
IN_TEXT = {'"', ","}

_tokenizers: WeakKeyDictionary[Any, dict[tuple[int, frozenset[int]], Any]] = WeakKeyDictionary()


class Constraint:
    """What each answer of a batch may still say.

    Parameters
    ----------
    grammar : Lark text, such as :func:`json_grammar` writes.
    tokenizer : the checkpoint's, a fast one.
    eos_token_ids : tokens that may end a complete answer.
    max_tokens : of each answer of the batch. No text in it takes more than a third of the tokens that were left when
        it began, so that a model that never stops by itself completes its answer, too.

    Raises
    ------
    InvalidInput
        If the grammar cannot be followed: an unknown keyword, nothing that satisfies it.
    MissingDependency
        If llguidance is not installed.
    """

    def __init__(self, grammar: str, tokenizer: Any, eos_token_ids: frozenset[int], max_tokens: Sequence[int]) -> None:
        check_grammar(grammar)
        self._grammar = grammar
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._tokens_left = list(max_tokens)
        self._text_left: list[int | None] = [None] * len(max_tokens)
        self._matchers: list[Any] = []

    def __call__(self, input_ids: Tensor | None, scores: Tensor) -> Tensor:
        """Rule out tokens, as a logits processor of transformers does: float32 [B, vocab] -> the same."""
        vocab_size = scores.shape[-1]
        if not self._matchers:
            self._start(vocab_size)
        for index, (matcher, row) in enumerate(zip(self._matchers, self._bits, strict=True)):
            if matcher.is_stopped():
                row.fill_(-1)
            else:
                matcher.unsafe_compute_mask_ptr(row.data_ptr(), row.numel() * row.element_size())
                self._end_long_text(index)
        bits = self._bits.to(scores.device, non_blocking=True)
        shifts = torch.arange(32, device=bits.device, dtype=bits.dtype)
        allowed = ((bits[..., None] >> shifts) & 1).bool().flatten(1)[:, :vocab_size]
        return self._ends_as_closings(scores, allowed).masked_fill(~allowed, float("-inf"))

    def accept(self, tokens: Tensor) -> None:
        """Note the tokens just chosen, int64 [B]."""
        for index, (matcher, token) in enumerate(zip(self._matchers, tokens.tolist(), strict=True)):
            self._tokens_left[index] -= 1
            if not matcher.is_stopped():
                matcher.consume_token(token)
            if matcher.is_error():
                raise TopsError(f"The grammar cannot be followed any further: {_first_line(matcher.get_error())}.")

    def finished(self, row: int) -> bool:
        """Whether nothing can follow in this answer."""
        return bool(self._matchers[row].is_stopped())

    def _end_long_text(self, row: int) -> None:
        """Leave nothing but the closing mark to a text that has taken its share of the tokens."""
        bits = self._bits[row]
        ends = [token for token in self._eos_token_ids if token < 32 * len(bits)]
        if any(_has_bit(bits, token) for token in ends):
            return
        may_follow = {mark for mark, token in self._marks.items() if _has_bit(bits, token)}
        left = self._text_left[row]
        left = None if left is None else left - 1
        if may_follow >= IN_TEXT:
            left = max(1, self._tokens_left[row] // TEXT_SHARE) if left is None else left
            if left < 1:
                quote = self._marks['"']
                bits.zero_()
                bits[quote // 32] = _bit(quote)
        elif may_follow and '"' not in may_follow:
            # A value is over. (Inside of a character nothing may follow, and after a backslash the quote is text.)
            left = None
        self._text_left[row] = left

    def _ends_as_closings(self, scores: Tensor, allowed: Tensor) -> Tensor:
        """Where a model would end its answer but may not yet, let it end the text, list, number or object it is in.

        Models that know little JSON say their piece and stop; without this they would be made to ramble on.
        """
        ends = [token for token in self._eos_token_ids if token < scores.shape[-1]]
        if not ends or not self._marks:
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
            raise InvalidInput(f"The grammar cannot be followed: {_first_line(prototype.get_error())}.")
        self._matchers = [prototype.deep_copy() for _ in self._tokens_left]
        marks = {mark: tokenizer.greedy_tokenize(mark) for mark in CLOSING_MARKS}
        single = all(len(tokens) == 1 and tokens[0] < vocab_size for tokens in marks.values())
        self._marks = {mark: tokens[0] for mark, tokens in marks.items()} if single else {}
        self._bits = torch.zeros(len(self._matchers), -(-tokenizer.vocab_size // 32), dtype=torch.int32)


def check_grammar(grammar: str) -> None:
    """Whether answers can follow a grammar; raises what :class:`Constraint` raises."""
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise MissingDependency(
            "Answers by a schema or grammar need llguidance: pip install 'tops-engine[structured]'."
        ) from error
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if is_error:
        raise InvalidInput(f"The grammar cannot be followed: {_first_line(messages[0])}.")


def json_grammar(schema: str | dict[str, Any]) -> str:
    """The grammar of all JSON that a schema, as text or read, allows and that comes to an end.

    What the schema leaves open is bounded, so that models that never stop by themselves complete an answer, too: lists
    hold 16 items, numbers 15 digits, and objects only the properties they name. Bounds the schema has itself are kept.
    """
    return f"start: {json_rule(schema)}"


def json_rule(schema: str | dict[str, Any], lenient: bool = False) -> str:
    """As :func:`json_grammar`, to stand inside a rule; ``lenient`` leaves out keywords that cannot be followed."""
    bounded = _bounded(json.loads(schema) if isinstance(schema, str) else schema)
    bounded.pop("$schema", None)
    return "%json " + json.dumps(bounded | {"x-guidance": JSON_STYLE | {"lenient": lenient}})


# Where schemas stand inside a schema.
_IN_VALUE = ("items", "additionalProperties")
_IN_LIST = ("anyOf", "oneOf", "allOf", "prefixItems")
_IN_MAPPING = ("properties", "patternProperties", "$defs", "definitions")


def _bounded(schema: Any, closed: bool = True) -> Any:
    """A copy of a schema with bounds where it has none. Parts of an ``allOf`` cannot be closed: each sees all keys."""
    if not isinstance(schema, dict):
        return schema
    copy: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _IN_VALUE:
            copy[key] = _bounded(value)
        elif key in _IN_LIST and isinstance(value, list):
            copy[key] = [_bounded(part, key != "allOf") for part in value]
        elif key in _IN_MAPPING and isinstance(value, dict):
            copy[key] = {name: _bounded(part) for name, part in value.items()}
        elif key != "format" or value in FORMATS:
            copy[key] = value
    if closed and "properties" in copy and "allOf" not in copy:
        copy.setdefault("additionalProperties", False)
    return _missing_bounds(copy) | copy


def _missing_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """Bounds of a schema's own value."""
    bounds: dict[str, Any] = {}
    if _has_type(schema, "array"):
        bounds["maxItems"] = max(MAX_ITEMS, schema.get("minItems", 0), len(schema.get("prefixItems", ())))
    if _has_type(schema, "integer", "number") and not {"enum", "const"} & schema.keys():
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        high = schema.get("maximum", schema.get("exclusiveMaximum"))
        if low is None:
            bounds["minimum"] = min(0, high or 0) - MAX_NUMBER
        if high is None:
            bounds["maximum"] = max(0, low or 0) + MAX_NUMBER
    return bounds


def _has_type(schema: dict[str, Any], *names: str) -> bool:
    given = schema.get("type")
    return any(name in (given if isinstance(given, list) else [given]) for name in names)


def _grammar_tokenizer(tokenizer: Any, vocab_size: int, eos_token_ids: frozenset[int]) -> Any:
    """The grammar library's view of a tokenizer, made once. Heads are often wider than their tokenizer."""
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
    """A token's bit in its int32."""
    bit = 1 << (token % 32)
    return bit if bit < 2**31 else bit - 2**32


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0].rstrip(".")
