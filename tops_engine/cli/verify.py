"""`tops verify`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from tops_engine.cli.app import app
from tops_engine.cli.options import takes_settings
from tops_engine.cli.output import err, load_engine, out
from tops_engine.cli.progress import progress_bar
from tops_engine.cli.tables import rich_table
from tops_engine.errors import InvalidInput
from tops_engine.settings import ModelSpec

if TYPE_CHECKING:
    from tops_engine.engine import Engine
    from tops_engine.verification.result import Verification

#: Exit status when something did not hold; errors have 1.
NOT_HELD = 3


@app.command()
@takes_settings
def verify(
    spec: ModelSpec,
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Hub id or folder, or `mini`. With --compare: JSON files."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Put the results in JSON files side by side.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder that the result is written to.")] = Path(),
) -> None:
    """Check a model on this machine against transformers, and measure what pruning does to it.

    Writes verify-MODEL.json, a Markdown card and a picture. Exits with status 3 if something is not as it should be.
    """
    if compare:
        _compare(what or [])
        return
    if len(what or []) > 1:
        raise InvalidInput("Give one model; --compare puts several result files side by side.")
    if not output.is_dir():
        raise InvalidInput(f"There is no folder {output} to write the result into.")
    from tops_engine.verification.run import verify as run_verify

    chosen = spec.model_copy(update={"model": what[0]}) if what else spec
    engine = load_engine(chosen)
    try:
        with progress_bar("steps") as progress:
            result = run_verify(engine, _command(chosen), progress)
    except (SystemExit, KeyboardInterrupt):
        err.print("Stopped; nothing was written.")
        raise
    _write(result, engine, output)
    for problem in result.problems:
        err.print(f"[bold red]Not as it should be:[/] {escape(problem)}", highlight=False, soft_wrap=True)
    if not result.held:
        raise typer.Exit(NOT_HELD)


def _compare(files: list[str]) -> None:
    from tops_engine.verification.card import comparison
    from tops_engine.verification.result import read_verification

    if len(files) < 2:
        raise InvalidInput("--compare needs at least two JSON files of `tops verify`.")
    out.print(rich_table(comparison([read_verification(Path(file)) for file in files])))


def _command(spec: ModelSpec) -> str:
    """Return the command that repeats the run; of a folder it has only the name."""
    given = spec.model_dump(mode="json", exclude_unset=True, exclude={"model"})
    flags = [
        f"--{name.replace('_', '-')}" if value is True else f"--{name.replace('_', '-')} {value}"
        for name, value in given.items()
        if value is not False
    ]
    model = Path(spec.model).resolve().name if Path(spec.model).is_dir() else spec.model
    return " ".join(["tops verify", model, *flags])


def _write(result: "Verification", engine: "Engine", folder: Path) -> None:
    from tops_engine.files import write_whole
    from tops_engine.verification.card import card
    from tops_engine.verification.drawing import kept_tokens_png

    name = "verify-" + re.sub(r"[^\w.-]+", "-", result.model.rsplit("/", 1)[-1]).strip("-.")
    files = {
        f"{name}.json": (result.model_dump_json(indent=2) + "\n").encode(),
        f"{name}.md": card(result, f"{name}.png").encode(),
        f"{name}.png": kept_tokens_png(engine),
    }
    try:
        for file, content in files.items():
            write_whole(folder / file, content)
    except OSError as error:
        raise InvalidInput(f"The result cannot be written to {folder}: {error.strerror}.") from error
    out.print(card(result, f"{name}.png"), markup=False, highlight=False, soft_wrap=True)
    err.print(f"Written to {folder}: {', '.join(files)}", style="dim", highlight=False, soft_wrap=True)
