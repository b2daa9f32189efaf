"""`tops tune`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tops_engine.cli.app import app
from tops_engine.cli.options import takes_settings
from tops_engine.cli.output import METHODS_HELP, check_folder, err, load_engine, out
from tops_engine.cli.progress import listing_skipped, progress_bar
from tops_engine.cli.tables import rich_table
from tops_engine.settings import Generation, ModelSpec
from tops_engine.settings.labels import read_labels


@app.command()
@takes_settings
def tune(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures.")],
    spec: ModelSpec,
    generation: Generation,
    question: Annotated[str | None, typer.Argument(help="What to ask about each picture.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Instead of it: a text file of questions, one per line.")] = None,
    agree: Annotated[float, typer.Option(help="Share of answers that must equal the unpruned model's.")] = 0.99,
    methods: Annotated[str, typer.Option(help=METHODS_HELP)] = "tops",
    keep: Annotated[
        str | None, typer.Option(help="Budgets to try, separated by commas. [default: 14 from 0.05 to 0.9]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the pruning to this JSON file, for --pruning.")
    ] = None,
) -> None:
    """Find the smallest budget whose answers on your own pictures agree with the unpruned model's.

    Budgets are tried from small to large, every method at each; a trial ends once too many answers differ.
    """
    from tops_engine.comparison.tune import GRID, tune
    from tops_engine.evaluation.data_set import DataSet

    check_folder(output)
    data = DataSet.read(folder, prompts, question)
    budgets = keep.replace(" ", "").split(",") if keep is not None else GRID
    engine = load_engine(spec)
    with listing_skipped(data), progress_bar("answers") as progress:
        result = tune(engine, data, read_labels(methods), agree, generation, budgets, progress)
    out.print(rich_table(result.table()))
    out.print(escape(result.sentence()), highlight=False, soft_wrap=True)
    pruning = result.best.pruning.model_dump_json(indent=2)
    if output is None:
        print(pruning)
    else:
        output.write_text(pruning + "\n", encoding="utf-8")
        err.print(f"Pruning: {output}", style="dim", highlight=False)
