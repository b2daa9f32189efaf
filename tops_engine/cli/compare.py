"""`tops compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from tops_engine.cli.app import app
from tops_engine.cli.options import prunings_to_compare, takes_settings
from tops_engine.cli.output import (
    METHODS_HELP,
    PRUNING_HELP,
    check_folder,
    err,
    load_engine,
    out,
    read_video,
    resumable,
    save_picture,
)
from tops_engine.cli.progress import listing_skipped, progress_bar
from tops_engine.cli.tables import rich_table
from tops_engine.errors import InvalidInput, shorten
from tops_engine.media.folders import holds_only_videos
from tops_engine.media.formats import is_video_name
from tops_engine.settings import Generation, ModelSpec, Pruning
from tops_engine.settings.labels import read_labels

if TYPE_CHECKING:
    from tops_engine.evaluation.data_set import DataSet
    from tops_engine.media.videos import Video


@app.command()
@takes_settings
def compare(
    pictures: Annotated[
        Path, typer.Argument(metavar="PICTURE|VIDEO|FOLDER", help="A picture, a video, or a folder of either.")
    ],
    spec: ModelSpec,
    generation: Generation,
    question: Annotated[str | None, typer.Argument(help="What to ask.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A text file with one question per line; each is asked about each picture.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help=METHODS_HELP + " [default: tops, and for a folder resize; all with --recommend]")
    ] = None,
    keep: Annotated[str, typer.Option(help="Budgets, separated by commas.")] = "0.222",
    pruning: Annotated[list[Path] | None, typer.Option(help=PRUNING_HELP)] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Folder: measured methods, separated by commas; show how far every other one differs from them, with "
            "paired 95 % intervals.",
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="One picture or video: timed runs of each pruning; the median is shown.")
    ] = 3,
    num_frames: Annotated[
        int | None, typer.Option(help="Video: most frames to take, spread evenly. [default: 16]")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Video: frames a second to take, up to num-frames or 768.")] = None,
    map: Annotated[
        Path | None,
        typer.Option("--map", help="One picture or video: draw what each pruning kept into this file."),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(
            help="One picture: draw it before and after the best of the prunings into this file, to share it."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder: add each result to this JSONL file; a stopped run continues it."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Folder: plot fidelity against latency into this picture.")
    ] = None,
    recommend: Annotated[
        bool,
        typer.Option(
            "--recommend", help="Folder: ask the better half of the methods on, and say which one to take, and why."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="With --recommend: print the result as JSON.")] = False,
) -> None:
    """Compare methods and budgets: answers, times, FLOPs and fidelity to the unpruned model.

    Ask a QUESTION about one picture or video, or --prompts about every picture of a FOLDER. --recommend says which
    method to take for these pictures.
    """
    for path in (map, card, output, plot):
        check_folder(path)
    is_video = _asks_about_videos(pictures, takes_frames=num_frames is not None or fps is not None)
    prunings = prunings_to_compare(methods, keep, pruning, default="all" if recommend else "tops", videos=is_video)
    if json and not recommend:
        raise InvalidInput("--json is for --recommend; give -o to write the results of a folder.")
    if pictures.is_dir():
        if map is not None or card is not None:
            raise InvalidInput("--map and --card draw one picture; give --plot to draw the results of a folder.")
        data = _data_set(pictures, prompts, question, is_video, num_frames, fps)
        if recommend:
            if against is not None or plot is not None:
                raise InvalidInput("--recommend compares every method with the best one, and draws no --plot.")
            _recommend(data, spec, generation, prunings, output, json)
            return
        compared = read_labels(against) if against else []
        with_resize = not methods and not pruning and not is_video
        _compare_folder(data, spec, generation, prunings, compared, output, plot, with_resize)
    elif not pictures.exists():
        raise InvalidInput(f"There is no {'video' if is_video else 'picture or folder'} {shorten(pictures)}.")
    else:
        if question is None or prompts is not None:
            raise InvalidInput(
                f"{shorten(pictures)} is one {'video' if is_video else 'picture'}: give one question after it "
                "(--prompts is for folders)."
            )
        if output is not None or plot is not None or against is not None:
            raise InvalidInput(f"-o, --plot and --against are for folders, and {shorten(pictures)} is not one.")
        if recommend:
            raise InvalidInput(f"--recommend is for a folder of pictures, and {shorten(pictures)} is not one.")
        clip = read_video(pictures, num_frames, fps) if is_video else None
        _compare_one(pictures if clip is None else clip, question, spec, generation, prunings, repeats, map, card)


def _asks_about_videos(path: Path, takes_frames: bool) -> bool:
    return takes_frames or (holds_only_videos(path) if path.is_dir() else is_video_name(path.name))


def _data_set(
    folder: Path, prompts: Path | None, question: str | None, is_video: bool, num_frames: int | None, fps: float | None
) -> "DataSet":
    from tops_engine.evaluation.data_set import Clips, DataSet

    if is_video:
        return Clips.read_videos(folder, prompts, question, num_frames, fps)
    return DataSet.read(folder, prompts, question)


def _compare_one(
    visual: "Path | Video",
    question: str,
    spec: ModelSpec,
    generation: Generation,
    prunings: list[Pruning],
    repeats: int,
    map: Path | None,
    card: Path | None,
) -> None:
    from tops_engine.comparison.card import draw_card
    from tops_engine.comparison.maps import draw_grid
    from tops_engine.comparison.one_picture import compare_prunings, comparison_table, parts_table
    from tops_engine.comparison.video_maps import draw_strips
    from tops_engine.conversation.messages import user_message, video_message

    engine = load_engine(spec)
    is_picture = isinstance(visual, Path)
    message = user_message(question, visual) if isinstance(visual, Path) else video_message(question, visual)
    rows = compare_prunings(engine, [message], prunings, generation, repeats)
    out.print(rich_table(comparison_table(rows, f"{question}  ({spec.model} on {engine.device})")))
    out.print(rich_table(parts_table(rows)))
    if map is not None:
        draw = draw_grid if is_picture else draw_strips
        save_picture(draw(rows, question, engine.family.decoder.num_layers), map, "Token map")
    if card is not None:
        drawn = draw_card(rows, question, engine.family.decoder.num_layers, spec.model)
        save_picture(drawn, card, "Picture to share")


def _compare_folder(
    data: "DataSet",
    spec: ModelSpec,
    generation: Generation,
    prunings: list[Pruning],
    against: list[str],
    output: Path | None,
    plot: Path | None,
    with_resize: bool,
) -> None:
    from tops_engine.comparison.folder import compare_folder
    from tops_engine.comparison.plots import plot_folder
    from tops_engine.evaluation.plotting import require_matplotlib
    from tops_engine.evaluation.prunings import with_smaller_pictures

    if plot is not None:
        require_matplotlib("--plot")
    engine = load_engine(spec)
    if with_resize:
        prunings = with_smaller_pictures(prunings, engine.family.one_size)
    with resumable(output), listing_skipped(data), progress_bar("questions") as progress:
        result = compare_folder(engine, data, prunings, generation, output, progress, against)
    out.print(rich_table(result.table()))
    for table in (result.differences_table(), result.halves_table()):
        if table is not None:
            out.print(rich_table(table))
    if plot is not None:
        plot_folder(result, plot)
        err.print(f"Plot: {plot}", style="dim", highlight=False)


def _recommend(
    data: "DataSet",
    spec: ModelSpec,
    generation: Generation,
    prunings: list[Pruning],
    output: Path | None,
    as_json: bool,
) -> None:
    from pydantic_core import to_json

    from tops_engine.comparison.recommendation import recommend

    engine = load_engine(spec)
    with resumable(output), listing_skipped(data), progress_bar("questions") as progress:
        found = recommend(engine, data, prunings, generation, output, progress, generation.seed or 0)
    if as_json:
        print(to_json(found, indent=2).decode())
        return
    for one in found:
        out.print(rich_table(one.table()))
        out.print(escape(one.sentence), highlight=False, soft_wrap=True)
