"""`tops doctor`."""

from rich.markup import escape
from rich.table import Table

from tops_engine.cli.app import app
from tops_engine.cli.output import out


@app.command()
def doctor() -> None:
    """Show versions, devices and memory, which optional packages are installed, and how to install others."""
    from tops_engine.doctor import examine

    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[yellow]missing[/]"}
    table = Table(box=None, show_header=False)
    for finding in examine():
        table.add_row(marks[finding.state], finding.topic, escape(finding.text))
    out.print(table)
