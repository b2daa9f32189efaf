"""The `tops` command."""

import io
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tops_engine.cli_options import takes_settings
from tops_engine.errors import InvalidInput, TopsError
from tops_engine.settings import Generation, ModelSpec, Pruning

if TYPE_CHECKING:
    from PIL.Image import Image

    from tops_engine.engine import Engine
    from tops_engine.report import Answer

app = typer.Typer(
    help="Vision-language models several times faster: keep only the visual tokens that matter.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console()
err = Console(stderr=True)

INTERRUPTED = 130
METHODS_HELP = "Pruning methods, separated by commas, with options if wanted: tops,tops:lambda=2.0:raters=last."


def main() -> None:
    """Run the command line; errors of the engine become one line and exit code 1, Ctrl-C exit code 130."""
    signal.signal(signal.SIGINT, lambda *_: sys.exit(INTERRUPTED))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An answer may hold characters that the terminal's or pipe's encoding lacks (Windows, LANG=C).
        sys.stdout.reconfigure(errors="replace")
    try:
        app()
    except TopsError as error:
        err.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


@app.command()
@takes_settings
def ask(
    images_and_question: Annotated[
        list[str], typer.Argument(metavar="[IMAGE]... QUESTION", help="Pictures, then what to ask about them.")
    ],
    spec: ModelSpec,
    pruning: Pruning,
    generation: Generation,
    json: Annotated[bool, typer.Option("--json", help="Print the answer and everything measured as JSON.")] = False,
    map: Annotated[Path | None, typer.Option("--map", help="Write the picture of the kept tokens here.")] = None,
) -> None:
    """Ask a question about one or more pictures."""
    from tops_engine.messages import user_message
    from tops_engine.report import Answer

    _check_folder(map)
    *images, question = images_and_question
    messages = [user_message(question, *images)]
    if map is not None and not images:
        raise InvalidInput("--map needs a picture in the question.")
    for piece in _load(spec).stream(messages, pruning, generation):
        if isinstance(piece, Answer):
            answer = piece
        elif not json:
            out.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    if json:
        print(answer.model_dump_json(indent=2))
    else:
        out.print()
        err.print(escape(_summary(answer)), style="dim", highlight=False, soft_wrap=True)
    if map is not None:
        _save_picture(answer.token_map.draw(), map)


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

    _check_folder(map)
    prunings = [Pruning.from_label(label, budget.strip()) for budget in keep.split(",") for label in methods.split(",")]
    engine = _load(spec)
    rows = compare_prunings(engine, [user_message(question, image)], prunings, generation, repeats)
    out.print(comparison_table(rows, f"{question}  ({spec.model} on {engine.device})"))
    if map is not None:
        _save_picture(stack_maps([row.answer for row in rows]), map)


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

    _check_folder(json)
    _check_folder(plot)
    prunings = [Pruning.from_label(label, budget.strip()) for label in methods.split(",") for budget in keep.split(",")]
    engine = _load(ModelSpec(model="mini", device=device))
    result = run_bench(engine, prunings, num_scenes=scenes, batch_size=batch_size, console=err)
    out.print(result.table())
    if json is not None:
        json.write_text(result.model_dump_json(indent=2) + "\n")
    if plot is not None:
        result.plot(plot)


@app.command()
def doctor() -> None:
    """Show versions, devices and memory, what is usable, and how to get what is missing."""
    from tops_engine.doctor import examine

    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[yellow]missing[/]"}
    table = Table(box=None, show_header=False)
    for finding in examine():
        table.add_row(marks[finding.state], finding.topic, escape(finding.text))
    out.print(table)


def _load(spec: ModelSpec) -> "Engine":
    from transformers.utils import logging

    from tops_engine.engine import Engine

    if spec.model == "mini" or not sys.stderr.isatty():
        logging.disable_progress_bar()
    return Engine.load(spec)


def _summary(answer: "Answer") -> str:
    usage, timings = answer.usage, answer.timings
    stages = " → ".join(str(sum(stage.visual_tokens)) for stage in usage.stages)
    tokens = f"{usage.visual_tokens} visual tokens → {stages} (layer-average {usage.layer_average:.1f})"
    return (
        f"{tokens if usage.visual_tokens else 'no picture'}, {usage.completion_tokens} written, first token after "
        f"{timings.first_token:.3f} s, {timings.total:.3f} s in all, {answer.flops.total / 1e9:.3g} GFLOPs"
    )


def _check_folder(path: Path | None) -> None:
    """Find out before the work, not after it, that its result cannot be written."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise InvalidInput(f"There is no folder to write {path} into, or it is a folder itself.")


def _save_picture(picture: "Image", path: Path) -> None:
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"The token map cannot be written to {path}: {error}.") from error
    err.print(f"Token map: {path}", style="dim", highlight=False)


if __name__ == "__main__":
    main()
