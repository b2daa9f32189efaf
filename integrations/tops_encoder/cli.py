"""`tops encode-server`."""

import os
from typing import Annotated

import typer
from rich.markup import escape

from tops_engine.cli.app import app
from tops_engine.cli.options import takes_settings
from tops_engine.cli.output import err
from tops_engine.errors import InvalidInput, MissingDependency
from tops_engine.remote.addresses import is_loopback
from tops_engine.settings import ModelSpec, Pruning

API_KEY = "TOPS_API_KEY"

#: The fewest characters of a key.
KEY_LENGTH = 16


@app.command("encode-server")
@takes_settings
def encode_server(
    spec: ModelSpec,
    pruning: Pruning,
    host: Annotated[
        str, typer.Option(help=f"Address to listen on; one that other machines can reach needs a key in {API_KEY}.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8100,
) -> None:
    """Encode and prune pictures for clients whose server runs only the language model.

    Only the vision tower of the model is loaded. Clients name the address: `tops caption photos --server
    http://llm:8000 --encode http://here:8100`. The server is vLLM with --enable-mm-embeds, with or without this
    package. Only machines that have the key can ask; without a key, only this machine.
    """
    try:
        from tops_encoder.server import serve
    except ImportError as error:
        raise MissingDependency("The encoder needs aiohttp: pip install 'tops-engine[encoder]'.") from error
    key = os.environ.get(API_KEY) or None
    if not is_loopback(host) and key is None:
        raise InvalidInput(
            f"Other machines can reach {host}; set a key of {KEY_LENGTH} characters or more in {API_KEY}."
        )
    if key is not None and len(key) < KEY_LENGTH:
        raise InvalidInput(f"The key in {API_KEY} is too short; use {KEY_LENGTH} characters or more.")
    from transformers.utils import logging

    from tops_engine.encoding.encoder import PictureEncoder

    logging.disable_progress_bar()
    encoder = PictureEncoder(spec, pruning)

    def started(url: str) -> None:
        runs = encoder.runs(None)
        text = f"Encoding pictures of {spec.model} at {url}, keeping {runs.budget_text} by {runs.label}."
        err.print(escape(text), style="dim", highlight=False, soft_wrap=True)

    serve(encoder, host, port, key, started)
