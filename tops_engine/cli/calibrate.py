"""`tops calibrate`."""

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from tops_engine.cli.app import app
from tops_engine.cli.options import takes_settings
from tops_engine.cli.output import check_folder, load_engine, out
from tops_engine.cli.progress import listing_skipped, progress_bar
from tops_engine.errors import InvalidInput
from tops_engine.settings import ModelSpec

QUESTION = "Describe this picture."


@app.command()
@takes_settings
def calibrate(
    output: Annotated[Path, typer.Option("--output", "-o", help="Write the recipe to this JSON file.")],
    keep: Annotated[float, typer.Option(help="Fraction of the visual tokens to keep, averaged over the layers.")],
    spec: ModelSpec,
    pictures: Annotated[Path | None, typer.Argument(help="A folder of pictures similar to those of later use.")] = None,
    method: Annotated[Literal["fitprune"], typer.Option(help="The method whose recipe is fitted.")] = "fitprune",
    prompts: Annotated[
        Path | None, typer.Option(help="A text file with one question per line; the pictures take them in turn.")
    ] = None,
    question: Annotated[
        str | None, typer.Option(help=f"One question about every picture. [default: {QUESTION}]", show_default=False)
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="The most pictures of the folder to use, evenly spread.")] = 64,
    scenes: Annotated[
        int | None,
        typer.Option(min=1, help="Instead of a folder: the number of scenes, like those that trained mini."),
    ] = None,
) -> None:
    """Fit a recipe to a model: how many visual tokens each layer needs. Other commands take it with --recipe."""
    from tops_engine.calibration import check_keep, data_set_questions, fit_recipe, scene_questions
    from tops_engine.evaluation.data_set import DataSet

    check_folder(output)
    check_keep(keep)
    if (pictures is None) == (scenes is None):
        raise InvalidInput("Give a folder of pictures, or --scenes NUMBER.")
    if pictures is None and (prompts is not None or question is not None):
        raise InvalidInput("--prompts and --question are for a folder of pictures; scenes have their own questions.")
    data = None
    if pictures is not None:
        data = DataSet.read(pictures, prompts, QUESTION if prompts is None and question is None else question)
    engine = load_engine(spec)
    begun = time.perf_counter()
    if data is None:
        asked = scene_questions(engine, scenes or 1)
    else:
        with listing_skipped(data):
            asked = data_set_questions(engine, data, samples)
    with progress_bar("readings") as progress:
        recipe = fit_recipe(engine, asked, keep, progress)
    recipe.save(output)
    curve = " ".join(f"{share:.2f}" for share in recipe.remaining)
    out.print(
        f"{output}: {100 * keep:g} % of the visual tokens on average, layer by layer {curve}; attention moves by "
        f"{100 * recipe.divergence:.1f} % on {recipe.num_questions} questions ({time.perf_counter() - begun:.1f} s)",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
