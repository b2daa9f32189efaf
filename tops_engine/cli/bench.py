"""`tops bench`."""

from pathlib import Path
from typing import Annotated

import typer

from tops_engine.bench.splits import Split
from tops_engine.cli.app import app
from tops_engine.cli.options import prunings_to_compare
from tops_engine.cli.output import METHODS_HELP, PRUNING_HELP, check_folder, load_engine, out, resumable
from tops_engine.cli.progress import progress_bar
from tops_engine.cli.tables import rich_table
from tops_engine.settings import ModelSpec
from tops_engine.settings.labels import read_labels

DEFAULT = "tops,divprune,random"


@app.command()
def bench(
    methods: Annotated[
        str | None, typer.Option(help=f"{METHODS_HELP} [default: {DEFAULT}, and a smaller picture]")
    ] = None,
    keep: Annotated[str, typer.Option(help="Budgets, separated by commas.")] = "0.5,0.222,0.111,0.056",
    pruning: Annotated[list[Path] | None, typer.Option(help=PRUNING_HELP)] = None,
    scenes: Annotated[int, typer.Option(min=1, help="Number of unseen scenes, with about seven questions each.")] = 200,
    kinds: Annotated[str | None, typer.Option(help="Only these kinds of questions, separated by commas.")] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Measured methods, separated by commas: show the difference of every other one from them, with paired "
            "95 % intervals."
        ),
    ] = None,
    split: Annotated[
        Split, typer.Option(help="Scenes to ask about: test, or confirm, which nothing was ever tuned on.")
    ] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="Scenes whose questions are asked together.")] = 64,
    model: Annotated[
        str, typer.Option(help="The embedded model, or the folder of another model that was trained on such scenes.")
    ] = "mini",
    device: Annotated[str, typer.Option(help="Device to run on.")] = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Add each measurement to this JSONL file; a stopped run continues it."),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Plot accuracy against budget into this picture.")] = None,
) -> None:
    """Measure the embedded model's accuracy, fidelity and times on scenes that it has not been trained on."""
    from tops_engine.bench.run import run_bench
    from tops_engine.evaluation.plotting import require_matplotlib
    from tops_engine.evaluation.prunings import with_smaller_pictures
    from tops_engine.mini.questions import KINDS

    for path in (output, json, plot):
        check_folder(path)
    if plot is not None:
        require_matplotlib("--plot")
    prunings = prunings_to_compare(methods, keep, pruning, DEFAULT)
    engine = load_engine(ModelSpec(model=model, device=device))
    if not methods and not pruning:
        prunings = with_smaller_pictures(prunings, engine.family.one_size)
    chosen = [kind.strip() for kind in kinds.split(",")] if kinds is not None else KINDS
    with resumable(output), progress_bar("scenes") as progress:
        result = run_bench(
            engine,
            prunings,
            scenes,
            batch_size,
            progress,
            chosen,
            output,
            read_labels(against) if against else (),
            split,
        )
    out.print(rich_table(result.table()))
    for table in (result.differences_table(), result.halves_table()):
        if table is not None:
            out.print(rich_table(table))
    if json is not None:
        json.write_text(result.model_dump_json(indent=2) + "\n")
    if plot is not None:
        result.plot(plot)
