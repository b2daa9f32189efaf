"""`tops models`."""

import json
from typing import Annotated

import typer
from rich.table import Table

from tops_engine.cli.app import app
from tops_engine.cli.output import out
from tops_engine.methods import METHODS


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """List the models that run, the pruning methods that apply to each, and what tests show of them."""
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
        table.add_row(
            row.model_type, "\n".join(row.checkpoints), methods, videos, "\n".join(row.checked) or "not tested"
        )
    out.print(table)
    out.print(f"Pruning methods: {', '.join(METHODS)}.", highlight=False)
    out.print(
        "Checked on small random checkpoints in the published layouts. Unpruned as generate: the answer equals that of "
        "transformers' generate, token for token. Pruned as a masked reference: the answer equals that of a slow run "
        "that hides the dropped tokens from attention. Batches as singles: a batch gives the answers that its "
        "conversations get alone.",
        style="dim",
    )
