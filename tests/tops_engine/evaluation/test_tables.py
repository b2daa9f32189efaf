"""Tables of results: as plain text, and as the command line draws them."""

from rich.console import Console

from tops_engine.cli.tables import rich_table
from tops_engine.evaluation.tables import Column, Notes, Table


def example() -> Table:
    table, notes = Table.of_numbers("Two [methods]", "first\ntoken ms", "KL"), Notes()
    table.columns.append(Column("answer", wraps=True, align="left"))
    table.add_row("unpruned", "1200.5", "0.0", " ".join(["word"] * 20))
    table.add_row(f"fastv {notes.mark('It cannot run.')}")
    table.add_row(f"scope {notes.mark('It cannot run.')}", "7.0", "0.25", "5")
    table.notes = notes.lines()
    return table


def test_plain_text_aligns_columns_and_wraps_long_cells() -> None:
    first_part, rest = " ".join(["word"] * 12), " ".join(["word"] * 8)
    assert str(example()).splitlines() == [
        "Two [methods]",
        "",
        "              first    KL  answer",
        "           token ms",
        "-" * 86,
        f"unpruned     1200.5   0.0  {first_part}",
        f"                           {rest}",
        "fastv [1]",
        "scope [1]       7.0  0.25  5",
        "[1] It cannot run.",
    ]


def test_the_command_line_draws_the_same_cells() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(rich_table(example()))
    lines = [line.split() for line in capture.get().splitlines()]
    assert ["Two", "[methods]"] in lines
    assert ["unpruned", "1200.5", "0.0", *["word"] * 20] in lines
    assert ["fastv", "[1]"] in lines
    assert ["[1]", "It", "cannot", "run."] in lines
