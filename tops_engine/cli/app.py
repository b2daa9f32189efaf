"""The typer application every command registers with."""

import typer

app = typer.Typer(
    help="Vision-language models on the few visual tokens that matter.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
