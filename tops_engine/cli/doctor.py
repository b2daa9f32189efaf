"""`tops doctor`."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tops_engine.cli.app import app
from tops_engine.cli.options import takes_settings
from tops_engine.cli.output import load_engine, out
from tops_engine.cli.progress import progress_bar
from tops_engine.settings import ModelSpec


@app.command()
@takes_settings
def doctor(
    spec: ModelSpec,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Measure how long --model takes to the first token on this device, and keep it for budgets in "
            "milliseconds (first_token_ms).",
        ),
    ] = False,
) -> None:
    """Show versions, devices and memory, which optional packages are installed, and how to install others."""
    if measure:
        _measure(spec)
        return
    from tops_engine.doctor import examine

    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[yellow]missing[/]"}
    table = Table(box=None, show_header=False)
    for finding in examine():
        table.add_row(marks[finding.state], finding.topic, escape(finding.text))
    out.print(table)


def _measure(spec: ModelSpec) -> None:
    from tops_engine.cost_measurement import measure_costs

    engine = load_engine(spec)
    with progress_bar("rounds") as progress:
        found = measure_costs(engine, progress=progress)
    path = found.save()
    sentence = (
        f"{spec.model} on {engine.device}: {found.before_ms[0]:.1f} ms and {found.before_ms[1]:.3f} ms a visual token "
        f"before the language model, then {found.prefill_ms[0]:.1f} ms and {found.prefill_ms[1]:.3f} ms a GFLOP to the "
        f"first token. These lines are off by {100 * found.error:.0f} % (median). Kept in {path}."
    )
    out.print(escape(sentence), highlight=False, soft_wrap=True)
