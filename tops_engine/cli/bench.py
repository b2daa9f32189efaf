"""`tops bench`."""

from pathlib import Path
from typing import Annotated

import typer

from tops_engine.cli.app import app
from tops_engine.cli.output import METHODS_HELP, check_folder, err, load_engine, out
from tops_engine.settings import ModelSpec, Pruning


@app.command()
def bench(
    methods: Annotated[str, typer.Option(help=METHODS_HELP)] = "tops,divprune,random",
    keep: Annotated[str, typer.Option(help="Budgets, separated by commas.")] = "1.0,0.222,0.111,0.056",
    scenes: Annotated[int, typer.Option(min=1, help="Number of unseen scenes.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions asked together.")] = 64,
    device: Annotated[str, typer.Option(help="Where to run.")] = "auto",
    json: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Write accuracy against budget here, as a picture.")
    ] = None,
) -> None:
    """Measure accuracy, fidelity and time of the embedded model on scenes it has never seen."""
    from tops_engine.mini.bench import run_bench

    check_folder(json)
    check_folder(plot)
    prunings = [Pruning.from_label(label, budget.strip()) for label in methods.split(",") for budget in keep.split(",")]
    engine = load_engine(ModelSpec(model="mini", device=device))
    result = run_bench(engine, prunings, num_scenes=scenes, batch_size=batch_size, console=err)
    out.print(result.table())
    if json is not None:
        json.write_text(result.model_dump_json(indent=2) + "\n")
    if plot is not None:
        result.plot(plot)
