"""`tops caption`."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from tops_engine.captioning.prompts import PROMPTS, prompt_of
from tops_engine.cli.app import app
from tops_engine.cli.options import takes_settings
from tops_engine.cli.output import FailureList, check_folder, err, load_engine, out, resumable, save_picture
from tops_engine.cli.progress import progress_bar
from tops_engine.errors import InvalidInput
from tops_engine.settings import CaptionText, Generation, ModelSpec, Pruning

if TYPE_CHECKING:
    from tops_engine.captioning.asking import Captioned, Picture, Question
    from tops_engine.captioning.data_set import Ask
    from tops_engine.remote.encoding import Encoder

API_KEY = "TOPS_API_KEY"

BATCH_SIZE, CONCURRENCY = 8, 64

#: Seconds that a server which stopped answering has to come back.
PATIENCE = 600.0

#: Pictures of a preview.
MOST_PREVIEWED = 50

#: The options of a model on this machine that decide about its answers; where it runs does not.
OF_THE_WEIGHTS = {"model", "revision", "dtype", "quantization"}

#: Those that decide about its pictures; results of earlier versions do not have them.
OF_THE_PICTURES = {"min_pixels", "max_pixels"}


@app.command()
@takes_settings
def caption(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures; its subfolders belong to it.")],
    spec: ModelSpec,
    pruning: Pruning,
    generation: Generation,
    text: CaptionText,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Add each caption to this JSONL file; a stopped run continues it.")
    ],
    prompt: Annotated[str | None, typer.Option(help="What to ask about each picture, in place of a style.")] = None,
    style: Annotated[str, typer.Option(metavar="|".join(PROMPTS), help="What kind of caption to ask for.")] = "caption",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help=f"Pictures asked about together. [default: {BATCH_SIZE}]")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Ask the model behind this OpenAI-compatible server, such as http://host:8000 of `tops serve`. "
            f"--model is its name there; {API_KEY} in the environment is the key, where one is needed.",
        ),
    ] = None,
    encode: Annotated[
        str | None,
        typer.Option(
            metavar="here|URL",
            help="With --server: encode and prune the pictures on this machine (here), or by encoders of "
            "`tops encode-server` at these addresses, separated by commas, and send the kept tokens to the server: a "
            "vLLM with --enable-mm-embeds.",
        ),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help=f"Requests to the server at once. [default: {CONCURRENCY}]")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only print what would be captioned; nothing is asked or written."),
    ] = False,
    preview: Annotated[
        Path | None,
        typer.Option(help=f"Draw the first {MOST_PREVIEWED} pictures beside their captions into this picture file."),
    ] = None,
) -> None:
    """Caption the pictures of a folder of any size; pictures that fail are tried again when it is run again."""
    from tops_engine.captioning.asking import Question
    from tops_engine.captioning.data_set import caption_folder, plan_folder

    check_folder(output)
    check_folder(preview)
    asked = prompt_of(style, prompt)
    ask: Ask
    settings: dict[str, Any]
    if server is None:
        if encode is not None:
            raise InvalidInput("--encode is for a --server; a model on this machine encodes its pictures itself.")
        if concurrency is not None:
            raise InvalidInput("--concurrency is for a --server; give --batch-size for a model on this machine.")
        question = Question(asked, pruning, generation)
        model = spec.model_dump(mode="json", include=OF_THE_WEIGHTS)
        model |= spec.model_dump(include=OF_THE_PICTURES, exclude_none=True)
        settings = {"model": model, "pruning": pruning.resolved()}
        ask = _asking_here(spec, question, batch_size or BATCH_SIZE)
    else:
        if batch_size is not None:
            raise InvalidInput("--batch-size is for a model on this machine; give --concurrency for a --server.")
        # Without flags the server prunes as it was started.
        question = Question(asked, pruning if pruning.model_fields_set else None, generation)
        ask, settings = _asking_there(server, encode, spec, question, concurrency or CONCURRENCY)
    settings |= {"prompt": asked, "generation": generation.model_dump(mode="json")}
    if dry_run:
        names, sentence = plan_folder(folder, output, settings, text)
        out.print("\n".join(names), markup=False, highlight=False, soft_wrap=True)
        err.print(sentence, style="dim", markup=False, highlight=False, soft_wrap=True)
        return
    with resumable(output), progress_bar("pictures") as progress:
        done = caption_folder(ask, folder, output, settings, text, progress, FailureList())
    err.print(done.sentence(), style="dim", highlight=False, soft_wrap=True)
    if preview is not None:
        _draw_preview(folder, output, preview)
    if done.failed:
        noun = "picture has" if done.failed == 1 else "pictures have"
        raise InvalidInput(f"{done.failed} {noun} no caption; {output} says why, and the same command tries again.")
    if done.texts_failed:
        noun = "text file was" if done.texts_failed == 1 else "text files were"
        raise InvalidInput(
            f"{done.texts_failed} {noun} not written; {output} has the captions, and the same command tries again."
        )


def _draw_preview(folder: Path, output: Path, preview: Path) -> None:
    from tops_engine.captioning.data_set import read_captions
    from tops_engine.captioning.preview import Previewed, draw_preview

    rows = [Previewed(name, folder / name, caption) for name, caption in read_captions(output, MOST_PREVIEWED)]
    save_picture(draw_preview(rows), preview, "Preview")


def _asking_here(spec: ModelSpec, question: "Question", batch_size: int) -> "Ask":
    from tops_engine.captioning.asking import caption_in_batches

    def ask(pictures: Iterator["Picture"]) -> Iterator["Captioned"]:
        engine = load_engine(spec)  # only now: there is something to ask
        answer = partial(engine.batch, pruning=question.pruning, generation=question.generation)
        return caption_in_batches(answer, pictures, question.prompt, batch_size)

    return ask


def _asking_there(
    server: str, encode: str | None, spec: ModelSpec, question: "Question", concurrency: int
) -> "tuple[Ask, dict[str, Any]]":
    """Return how to ask a server, and what is known of its model and of what is pruned."""
    from tops_engine.captioning.in_flight import caption_in_flight
    from tops_engine.remote import RemoteEngine

    of_the_tower = spec.model_dump(include=spec.model_fields_set - {"model"})
    key = os.environ.get(API_KEY) or None
    encoder: Encoder | None = None
    if encode is not None:
        from tops_engine.encoding.places import encoder_at

        encoder = encoder_at(encode, key, **of_the_tower)
    elif of_the_tower:
        flag = min(of_the_tower).replace("_", "-")
        raise InvalidInput(f"--{flag} is for a model on this machine; leave it out with --server.")
    name = spec.model if "model" in spec.model_fields_set else None
    engine = RemoteEngine(server, name, key, encoder=encoder)
    model, pruned = engine.connect(question.pruning)
    say = partial(err.print, style="yellow", highlight=False, soft_wrap=True)
    ask = partial(
        caption_in_flight,
        engine,
        question=question,
        at_once=concurrency,
        patience=PATIENCE,
        say=lambda text: say(escape(text)),
    )
    settings = {"model": model, "pruning": pruned.resolved() if pruned is not None else None}
    return ask, settings | ({"encoded": True} if encoder is not None else {})
