"""Convert tokens to text as they come, without partial characters and without partial stop strings."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class TextStream:
    """The text of one answer, without the white space that chat templates leave in front of it.

    An answer that continues a text keeps its white space, so that the two texts can be joined.

    Stop strings are looked for in the text rather than in the tokens (transformers' ``StopStringCriteria``): the stream
    has to hold back what might become one anyway, and the text says exactly where the answer ends.

    Parameters
    ----------
    tokenizer : a fast tokenizer.
    stop : the answer ends before any of these.
    stop_before : stop strings are looked for only in front of this text, such as the mark of a function call.
    continued : the last tokens of the text that the answer continues; None if it begins a text.
    marks : special tokens that are part of the text, such as the marks of function calls, by their ids.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str] = (),
        stop_before: str | None = None,
        continued: Sequence[int] | None = None,
        marks: Mapping[int, str] | None = None,
    ) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._tokenizer = tokenizer
        self._continued = None if continued is None else list(continued)
        # Without the tokens before it, a decoder would leave out the white space in front of the first word.
        self._decoder = DecodeStream(ids=self._continued or [], skip_special_tokens=True)
        self._stop = tuple(stop)
        self._stop_before = stop_before
        self._marks = marks or {}
        self._token_ids: list[int] = []
        self._text = ""
        self._num_shown = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """The answer so far, cut before a stop string."""
        return self._text

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return tokens as text, special ones included."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def push(self, token_id: int) -> str:
        """Take a token; return the text that is now certain."""
        self._token_ids.append(token_id)
        piece = (self._decoder.step(self._backend, token_id) or "") + self._marks.get(token_id, "")
        self._text += piece if self._text or self._continued is not None else piece.lstrip()
        self._look_for_stop()
        return self._show(len(self._text) if self.stopped else len(self._text) - self._num_withheld())

    def finish(self) -> str:
        """End the answer; return the text held back."""
        if not self.stopped:
            # An incomplete character is only in the full decoding, as a replacement character.
            whole = self._whole()
            self._text = whole if whole.startswith(self._text) else self._text
            self._look_for_stop()
        return self._show(len(self._text))

    def _whole(self) -> str:
        """Return the full decoding of the answer."""
        if self._continued is None:
            return str(self._tokenizer.decode(self._token_ids, skip_special_tokens=True)).lstrip()
        before, both = (
            self._tokenizer.decode(tokens, skip_special_tokens=True)
            for tokens in (self._continued, self._continued + self._token_ids)
        )
        return str(both).removeprefix(before)

    def _look_for_stop(self) -> None:
        if self._stop_before is not None and self._stop_before in self._text:
            return
        found = [self._text.find(stop) for stop in self._stop if stop in self._text]
        if found:
            self._text = self._text[: min(found)]
            self.stopped = True

    def _num_withheld(self) -> int:
        """Return the length of the longest end of the text that begins a stop string."""
        if self._stop_before is not None and self._stop_before in self._text:
            return 0
        lengths = (
            length
            for stop in self._stop
            for length in range(1, min(len(stop), len(self._text) + 1))
            if self._text.endswith(stop[:length])
        )
        return max(lengths, default=0)

    def _show(self, end: int) -> str:
        piece = self._text[self._num_shown : end]
        self._num_shown = max(self._num_shown, end)
        return piece
