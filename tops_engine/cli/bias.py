"""`tops bias`."""

import re
from pathlib import Path
from typing import Annotated

import typer

from tops_engine.cli.app import app
from tops_engine.cli.options import prunings_to_compare, takes_settings
from tops_engine.cli.output import METHODS_HELP, PRUNING_HELP, err, load_engine, out
from tops_engine.cli.progress import listing_skipped, progress_bar
from tops_engine.cli.tables import rich_table
from tops_engine.errors import InvalidInput, shorten
from tops_engine.settings import ModelSpec


@app.command()
@takes_settings
def bias(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures.")],
    spec: ModelSpec,
    question: Annotated[str | None, typer.Argument(help="What to ask about each picture.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Instead of it: a text file of questions, one per line.")] = None,
    methods: Annotated[str | None, typer.Option(help=METHODS_HELP + " [default: tops,random]")] = None,
    keep: Annotated[str, typer.Option(help="Budgets, separated by commas.")] = "0.222",
    pruning: Annotated[list[Path] | None, typer.Option(help=PRUNING_HELP)] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write heat maps to this folder: one for each pruning, one of all."),
    ] = None,
) -> None:
    """Measure which places of the pictures methods keep: all evenly, or the same places whatever they show."""
    from tops_engine.comparison.plots import draw_position_bias
    from tops_engine.comparison.position_bias import bias_table, measure_position_bias
    from tops_engine.evaluation.data_set import DataSet
    from tops_engine.evaluation.plotting import require_matplotlib
    from tops_engine.evaluation.prunings import pruning_name

    prunings = prunings_to_compare(methods, keep, pruning, default="tops,random")
    data = DataSet.read(folder, prompts, question)
    if output is not None:
        require_matplotlib("-o")
        try:
            output.mkdir(exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"The folder {shorten(output)} cannot be created: {error.strerror}.") from error
    engine = load_engine(spec)
    with listing_skipped(data), progress_bar("questions") as progress:
        biases = measure_position_bias(engine, data, prunings, progress=progress)
    title = f"Places kept in {max(bias.num_answers for bias in biases)} questions about {folder}"
    out.print(rich_table(bias_table(biases, title)))
    if output is not None:
        measured = [bias for bias in biases if bias.num_answers]
        for one in measured:
            draw_position_bias([one], output / f"{re.sub('[^A-Za-z0-9.=_-]+', '-', pruning_name(one.pruning))}.png")
        draw_position_bias(measured, output / "all.png")
        err.print(f"Heat maps: {shorten(output)}", style="dim", highlight=False)
