"""`tops models`."""

import json
from typing import Annotated

import typer
from rich.table import Table

from tops_engine.cli.app import app
from tops_engine.cli.output import out


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """List the models that run, the pruning methods that apply to each, and what was checked."""
    from tops_engine.supported_models import model_types

    rows = model_types()
    if as_json:
        print(json.dumps([row.model_dump() for row in rows], indent=2))
        return
    table = Table("Model type", "Checkpoints (others of their layout load too)", "Methods", "Videos", "Checked")
    table.show_lines = True
    for row in rows:
        methods = f"all but {', '.join(row.other_methods)}" if row.other_methods else "all"
        videos = "yes" if row.videos else "no"
        table.add_row(row.model_type, "\n".join(row.checkpoints), methods, videos, "\n".join(row.checked))
    out.print(table)
    out.print(
        "Checked, on small random checkpoints in the published layouts: unpruned answers are those of transformers' "
        "generate, token for token; pruned ones those of a slow run that hides the dropped tokens; a batch answers as "
        "each conversation alone.",
        style="dim",
    )
