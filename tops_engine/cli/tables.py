"""Drawing tables of results in the terminal."""

from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from tops_engine.evaluation.tables import Table

LONGEST_NAME = 24


def rich_table(table: Table) -> RichTable:
    """Draw a table without frames, narrow enough for a terminal of 80 columns."""
    drawn = RichTable(
        title=escape(table.title),
        title_justify="left",
        title_style="bold",
        caption=escape("\n".join(table.notes)) or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    longest = max((len(row[0]) for row in table.rows), default=0)
    drawn.add_column("", overflow="fold", min_width=min(LONGEST_NAME, longest))
    for column in table.columns:
        if column.wraps:
            drawn.add_column(column.heading, justify=column.align, overflow="fold", min_width=6)
        else:
            drawn.add_column(column.heading, justify=column.align, no_wrap=True)
    for row in table.rows:
        drawn.add_row(*map(escape, row))
    return drawn
