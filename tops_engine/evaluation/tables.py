"""Tables of results as data. The command line draws them with rich; ``str(table)`` is plain text."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal

#: Characters a line of a wrapping column has in plain text.
WRAP_WIDTH = 60


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    heading : lines separated by newlines.
    wraps : whether long cells are broken into lines; numbers are not.
    """

    heading: str
    wraps: bool = False
    align: Literal["left", "right"] = "right"


@dataclass
class Table:
    """Rows of results.

    Attributes
    ----------
    title : the line above the table.
    columns : the columns after the first one, which holds the rows' names.
    rows : the cells of each row, the name first; missing cells at the end are empty.
    notes : the lines below the table.
    """

    title: str
    columns: list[Column]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of_numbers(cls, title: str, *headings: str) -> "Table":
        """Make a table whose columns hold numbers."""
        return cls(title, [Column(heading) for heading in headings])

    def add_row(self, name: str, *cells: str) -> None:
        """Add a row below the others."""
        self.rows.append((name, *cells))

    def __str__(self) -> str:
        columns = [Column("", wraps=True, align="left"), *self.columns]
        cells = [[column.heading.splitlines() for column in columns]]
        for row in self.rows:
            texts = [*row, *[""] * (len(columns) - len(row))]
            cells.append([_lines(text, column) for text, column in zip(texts, columns, strict=True)])
        widths = [max(len(line) for cell in column for line in (*cell, "")) for column in zip(*cells, strict=True)]
        lines = [line for row in cells for line in _row_text(row, columns, widths)]
        lines.insert(max(len(cell) for cell in cells[0]), "-" * (sum(widths) + 2 * len(widths) - 2))
        return "\n".join([self.title, "", *lines, *self.notes])


class Notes:
    """Number the notes under a table; equal texts share a number."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, text: str | None) -> str:
        """Return the mark that refers to a note, such as ``[1]``, or an empty string without a text."""
        if text is None:
            return ""
        if text not in self._texts:
            self._texts.append(text)
        return f"[{self._texts.index(text) + 1}]"

    def lines(self) -> list[str]:
        """Return the notes, each with its number."""
        return [f"[{number}] {text}" for number, text in enumerate(self._texts, start=1)]


def _lines(text: str, column: Column) -> list[str]:
    return textwrap.wrap(text, WRAP_WIDTH) if column.wraps else text.splitlines()


def _row_text(row: Sequence[list[str]], columns: Sequence[Column], widths: Sequence[int]) -> list[str]:
    """Lay the lines of a row's cells side by side."""
    texts = []
    for parts in zip_longest(*row, fillvalue=""):
        padded = [
            part.ljust(width) if column.align == "left" else part.rjust(width)
            for part, column, width in zip(parts, columns, widths, strict=True)
        ]
        texts.append("  ".join(padded).rstrip())
    return texts
