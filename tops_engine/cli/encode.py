"""`tops encode`."""

from pathlib import Path
from typing import Annotated

import typer

from tops_engine.cli.app import app
from tops_engine.cli.options import takes_settings
from tops_engine.cli.output import FailureList, err, resumable
from tops_engine.cli.progress import progress_bar
from tops_engine.errors import InvalidInput
from tops_engine.settings import ModelSpec, Pruning


@app.command()
@takes_settings
def encode(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures; its subfolders belong to it.")],
    spec: ModelSpec,
    pruning: Pruning,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the encoded pictures; a stopped run continues it.")
    ],
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures encoded together.")] = 8,
) -> None:
    """Encode and prune the pictures of a folder into files that vLLM takes in place of pictures (image_embeds).

    Only the vision tower of the model is loaded. The kept tokens of cats/7.jpg go to OUTPUT/cats/7.jpg.pt, and
    OUTPUT/encoded.jsonl lists the files. vLLM takes them with --enable-mm-embeds. To send pictures to a server right
    away, use `tops caption --server URL --encode here`.
    """
    from transformers.utils import logging

    from tops_engine.encoding.encoder import PictureEncoder
    from tops_engine.encoding.folder import encode_folder

    if not output.parent.is_dir():
        raise InvalidInput(f"There is no folder to make {output} in.")
    logging.disable_progress_bar()
    encoder = PictureEncoder(spec, pruning)
    with resumable(output), progress_bar("pictures") as progress:
        done = encode_folder(encoder, folder, output, batch_size, progress, FailureList())
    err.print(done.sentence(), style="dim", highlight=False, soft_wrap=True)
    if done.failed:
        noun = "picture was" if done.failed == 1 else "pictures were"
        raise InvalidInput(
            f"{done.failed} {noun} not encoded; encoded.jsonl says why, and the same command tries again."
        )
