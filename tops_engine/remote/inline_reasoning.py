"""Reasoning that a server leaves in the text, because it was started without a parser for it."""

from tops_engine.conversation.thinking import MARKS, Marks


class InlineReasoning:
    """Separates the reasoning between marks at the beginning of a text that arrives in pieces.

    Parameters
    ----------
    is_answer : whether the text is answer from its beginning.
    """

    def __init__(self, is_answer: bool = False) -> None:
        self._pending = ""
        self._marks: Marks | None = None
        self._is_answer = is_answer

    def push(self, text: str) -> tuple[str, str]:
        """Take new text; return the reasoning and the answer in it that are now certain."""
        self._pending += text
        if not self._is_answer and self._marks is None:
            self._look_for_begin()
        if self._is_answer:
            return "", self._take(len(self._pending))
        if self._marks is None:
            return "", ""
        reasoning, found, rest = self._pending.partition(self._marks.end)
        if not found:
            return self._take(len(self._pending) - self._num_withheld(self._marks.end)), ""
        self._pending, self._is_answer = "", True
        return reasoning, rest

    def finish(self) -> tuple[str, str]:
        """Return the reasoning and the answer that were held back."""
        rest = self._take(len(self._pending))
        return ("", rest) if self._marks is None or self._is_answer else (rest, "")

    def _look_for_begin(self) -> None:
        begun = self._pending.lstrip()
        self._marks = next((marks for marks in MARKS if begun.startswith(marks.begin + marks.label)), None)
        if self._marks is not None:
            self._pending = begun.removeprefix(self._marks.begin + self._marks.label)
        else:
            self._is_answer = not any((marks.begin + marks.label).startswith(begun) for marks in MARKS)

    def _num_withheld(self, end: str) -> int:
        """Return the length of the end of the text that may begin the mark."""
        return max((length for length in range(1, len(end)) if self._pending.endswith(end[:length])), default=0)

    def _take(self, length: int) -> str:
        taken, self._pending = self._pending[:length], self._pending[length:]
        return taken
