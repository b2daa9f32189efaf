"""`tops caption`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tops_engine.captioning.prompts import PROMPTS, prompt_of
from tops_engine.cli.app import app
from tops_engine.cli.options import takes_settings
from tops_engine.cli.output import check_folder, err, load_engine, resumable
from tops_engine.errors import InvalidInput
from tops_engine.settings import Generation, ModelSpec, Pruning

#: What decides about the weights' answers; where they run does not.
OF_THE_WEIGHTS = {"model", "revision", "dtype", "quantization"}


@app.command()
@takes_settings
def caption(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures; those in its sub-folders belong to it.")],
    spec: ModelSpec,
    pruning: Pruning,
    generation: Generation,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Add each caption to this JSONL file; a stopped run continues it.")
    ],
    prompt: Annotated[str | None, typer.Option(help="What to ask about each picture, in place of a style.")] = None,
    style: Annotated[str, typer.Option(metavar="|".join(PROMPTS), help="What kind of caption to ask for.")] = "caption",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures asked about together.")] = 8,
    write_txt: Annotated[
        bool, typer.Option("--write-txt", help="Also write .txt files beside the pictures that have none.")
    ] = False,
) -> None:
    """Caption the pictures of a folder of any size; pictures that fail are tried again when it is run again."""
    from tops_engine.captioning.asking import Question, caption_in_batches
    from tops_engine.captioning.data_set import caption_folder

    check_folder(output)
    question = Question(prompt_of(style, prompt), pruning, generation)
    settings = {
        "model": spec.model_dump(mode="json", include=OF_THE_WEIGHTS),
        "prompt": question.prompt,
        "pruning": pruning.resolved(),
        "generation": generation.model_dump(mode="json"),
    }
    ask = partial(caption_in_batches, load_engine(spec), question=question, batch_size=batch_size)
    with resumable(output):
        done = caption_folder(ask, folder, output, settings, write_txt, err)
    err.print(done.sentence(), style="dim", highlight=False, soft_wrap=True)
    if done.failed:
        noun = "picture has" if done.failed == 1 else "pictures have"
        raise InvalidInput(f"{done.failed} {noun} no caption; {output} says why, and the same command tries again.")
