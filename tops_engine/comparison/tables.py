"""Tables of comparisons as terminals show them."""

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

LONGEST_NAME = 24


def plain_table(title: str, names: Sequence[str], *headings: str) -> Table:
    """A table without frames, narrow enough for a terminal of 80 columns: a column of ``names``, then numbers."""
    table = Table(
        title=escape(title),
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("", overflow="fold", min_width=min(LONGEST_NAME, max(map(len, names))))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


class Notes:
    """Numbered notes under a table; the same text gets one number."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, text: str | None) -> str:
        """What to put where the note belongs, such as ``[1]``; nothing without a text."""
        if text is None:
            return ""
        if text not in self._texts:
            self._texts.append(text)
        return f"[{self._texts.index(text) + 1}]"

    def caption(self, *others: str) -> str | None:
        """The notes a line each, after ``others``, escaped for rich; None without any."""
        lines = [*others, *(f"[{number}] {text}" for number, text in enumerate(self._texts, start=1))]
        return escape("\n".join(lines)) or None
