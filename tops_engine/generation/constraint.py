"""Answers that follow a grammar: at each step only tokens from which the grammar can still be completed.

The grammars are Lark texts in the dialect of llguidance (an optional package), which may hold ``%json {...}`` schemas.
"""

import json
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tops_engine.errors import InvalidInput, MissingDependency, TopsError, reason_of
from tops_engine.generation.reasoning import ReasoningState

# The most digits of a number: this many are exact in a float64.
MAX_NUMBER = 10**15
MAX_ITEMS = 16

# Characters of a text with a pattern or format that has no maxLength. Such a text may be impossible to end at most
# places, so that a share of the tokens alone would not end it. It is raised for patterns that need more.
MAX_PATTERN = 128
LONGEST_PATTERN = 4096

# A text takes at most this share of the tokens left when it begins: other texts, brackets and keys need the rest.
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
    """The grammar of a batch of answers, and the state of each answer in it.

    Parameters
    ----------
    grammar : Lark text, such as :func:`json_grammar` writes.
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


def check_grammar(grammar: str) -> None:
    """Check that answers can follow a grammar; raise what :class:`Constraint` raises."""
    fault = _fault_of(grammar)
    if fault is not None:
        raise InvalidInput(f"The grammar cannot be followed: {reason_of(fault)}.")


def _fault_of(grammar: str) -> str | None:
    """Return why a grammar cannot be followed, None if it can."""
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise MissingDependency(
            "Answers by a schema or grammar need llguidance: pip install 'llguidance>=1.4'."
        ) from error
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    return str(messages[0]) if is_error else None


def json_grammar(schema: str | dict[str, Any]) -> str:
    """Return the grammar of the JSON that a schema, as text or read, allows, with bounds where the schema has none.

    The bounds let a model that never stops by itself complete an answer, if ``max_tokens`` suffices for them: lists
    hold 16 items, numbers 15 digits, texts with a pattern or format 128 characters (or as many as the pattern needs),
    objects only the properties that they name, and objects that name none 16. Bounds of the schema are kept. Not
    bounded is how deep values lie inside of each other, where a schema refers to itself or leaves values open.
    """
    return f"start: {json_rule(schema)}"


def json_rule(schema: str | dict[str, Any], lenient: bool = False) -> str:
    """Return the same as :func:`json_grammar`, as a part of a rule.

    ``lenient`` leaves out keywords that cannot be followed.
    """
    bounded = _bounded(json.loads(schema) if isinstance(schema, str) else schema)
    bounded.pop("$schema", None)
    return "%json " + json.dumps(bounded | {"x-guidance": JSON_STYLE | {"lenient": lenient}})


# Where schemas stand inside a schema.
_IN_VALUE = ("items", "additionalProperties")
_IN_LIST = ("anyOf", "oneOf", "allOf", "prefixItems")
_IN_MAPPING = ("properties", "patternProperties", "$defs", "definitions")


def _bounded(schema: Any, closed: bool = True) -> Any:
    """Return a copy of a schema with bounds where it has none.

    Parts of an ``allOf`` cannot be closed to other properties, since each part sees all of them.
    """
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
        elif key != "format" or not isinstance(value, str) or value in FORMATS:
            copy[key] = value
    if closed and "properties" in copy and "allOf" not in copy:
        copy.setdefault("additionalProperties", False)
    return _missing_bounds(copy) | copy


def _missing_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the bounds that a schema lacks for its own value."""
    bounds: dict[str, Any] = {}
    if _has_type(schema, "object") and not schema.keys() & {"properties", "allOf", "anyOf", "oneOf", "$ref"}:
        bounds["maxProperties"] = max(MAX_ITEMS, _number(schema, "minProperties") or 0)
    if _has_type(schema, "string") and {"pattern", "format"} & schema.keys() and "maxLength" not in schema:
        bounds |= _text_bound(schema)
    if _has_type(schema, "array"):
        first = schema.get("prefixItems")
        num_first = len(first) if isinstance(first, list) else 0
        bounds["maxItems"] = max(MAX_ITEMS, _number(schema, "minItems") or 0, num_first)
    if _has_type(schema, "integer", "number") and not {"enum", "const"} & schema.keys():
        low = _number(schema, "minimum", "exclusiveMinimum")
        high = _number(schema, "maximum", "exclusiveMaximum")
        if low is None and not {"minimum", "exclusiveMinimum"} & schema.keys():
            bounds["minimum"] = min(0, high or 0) - MAX_NUMBER
        if high is None and not {"maximum", "exclusiveMaximum"} & schema.keys():
            bounds["maximum"] = max(0, low or 0) + MAX_NUMBER
    return bounds


def _number(schema: dict[str, Any], *keywords: str) -> Any:
    """Return the first of the keywords that is a number; the grammar library refuses other values by name."""
    values = (schema.get(keyword) for keyword in keywords)
    return next((value for value in values if isinstance(value, int | float) and not isinstance(value, bool)), None)


def _text_bound(schema: dict[str, Any]) -> dict[str, int]:
    """Return the ``maxLength`` of a text with a pattern or format, so that some text remains possible."""
    keywords = {key: schema[key] for key in ("pattern", "format", "minLength") if key in schema}
    length = MAX_PATTERN
    while length <= LONGEST_PATTERN:
        bounded = json.dumps({"type": "string", **keywords, "maxLength": length})
        if _fault_of(f"start: %json {bounded}") is None:
            return {"maxLength": length}
        length *= 2
    return {}


def _has_type(schema: dict[str, Any], *names: str) -> bool:
    given = schema.get("type")
    return any(name in (given if isinstance(given, list) else [given]) for name in names)


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
