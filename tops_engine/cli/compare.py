"""`tops compare`."""

from pathlib import Path
from typing import Annotated

import typer

from tops_engine.cli.app import app
from tops_engine.cli.options import takes_settings
from tops_engine.cli.output import METHODS_HELP, check_folder, load_engine, out, save_picture
from tops_engine.settings import Generation, ModelSpec, Pruning


@app.command()
@takes_settings
def compare(
    image: Annotated[Path, typer.Argument(help="The picture.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    spec: ModelSpec,
    generation: Generation,
    methods: Annotated[str, typer.Option(help=METHODS_HELP)] = "tops",
    keep: Annotated[str, typer.Option(help="Budgets, separated by commas.")] = "1.0,0.222",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each; the median is shown.")] = 3,
    map: Annotated[Path | None, typer.Option("--map", help="Write the pictures of the kept tokens here.")] = None,
) -> None:
    """Ask the same question with several methods and budgets: answers, tokens, times and FLOPs side by side."""
    from tops_engine.comparison import compare_prunings, comparison_table, stack_maps
    from tops_engine.messages import user_message

    check_folder(map)
    prunings = [Pruning.from_label(label, budget.strip()) for budget in keep.split(",") for label in methods.split(",")]
    engine = load_engine(spec)
    rows = compare_prunings(engine, [user_message(question, image)], prunings, generation, repeats)
    out.print(comparison_table(rows, f"{question}  ({spec.model} on {engine.device})"))
    if map is not None:
        save_picture(stack_maps([row.answer for row in rows]), map)
