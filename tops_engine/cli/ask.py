"""`tops ask`."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from tops_engine.cli.app import app
from tops_engine.cli.options import path_and_keep, takes_settings
from tops_engine.cli.output import check_folder, err, load_engine, out, read_video, save_picture
from tops_engine.errors import InvalidInput
from tops_engine.settings import Generation, ModelSpec, Pruning

if TYPE_CHECKING:
    from tops_engine.answers.base import Piece
    from tops_engine.answers.report import Answer


@app.command()
@takes_settings
def ask(
    images_and_question: Annotated[
        list[str],
        typer.Argument(
            metavar="[IMAGE[@KEEP]]... QUESTION",
            help="Pictures, then what to ask about them. photo.jpg@0.5 or photo.jpg@64 sets the budget of one picture. "
            "- is a picture from standard input.",
        ),
    ],
    spec: ModelSpec,
    pruning: Pruning,
    generation: Generation,
    video: Annotated[
        list[str] | None, typer.Option("--video", help="A video to ask about, after the pictures; @KEEP as for these.")
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option(help="Most frames to take of each video, spread evenly. [default: 16]")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second to take of each video, up to num-frames or 768.")
    ] = None,
    prefill: Annotated[
        str | None, typer.Option(help="The beginning of the answer; the model continues it and does not repeat it.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the answer and everything measured as JSON.")] = False,
    map: Annotated[Path | None, typer.Option("--map", help="Write the picture of the kept tokens here.")] = None,
    boxes: Annotated[
        Path | None,
        typer.Option("--boxes", help="Write the pictures with the boxes and points that the answer names here."),
    ] = None,
) -> None:
    """Ask a question about pictures or videos."""
    from tops_engine.conversation.messages import user_message

    check_folder(map)
    check_folder(boxes)
    *images, question = images_and_question
    if map is not None and not images and not video:
        raise InvalidInput("--map needs a picture or a video in the question.")
    if boxes is not None and not images:
        raise InvalidInput("--boxes needs a picture in the question.")
    named = [path_and_keep(text) for text in images]
    if question == "-" or [path for path, _ in named].count("-") > 1:
        raise InvalidInput("- is one picture from standard input; put it before the question, and only once.")
    message = user_message(question, *(_picture(path) for path, _ in named), keep=[keep for _, keep in named])
    videos = []
    for text in video or []:
        path, keep = path_and_keep(text)
        videos.append({"type": "video", "video": read_video(Path(path), num_frames, fps), "keep": keep})
    messages = [message | {"content": [*message["content"][:-1], *videos, message["content"][-1]]}]
    if prefill is not None:
        messages.append({"role": "assistant", "content": prefill})
    answer = _shown(load_engine(spec).stream(messages, pruning, generation), hidden=json)
    if json:
        print(answer.model_dump_json(indent=2))
    else:
        out.print()
        err.print(escape(answer.summary()), style="dim", highlight=False, soft_wrap=True)
    if map is not None:
        save_picture(answer.token_map.draw(), map, "Token map")
    if boxes is not None:
        from tops_engine.grounding.drawing import column

        what = f"Boxes ({len(answer.boxes)}) and points ({len(answer.points)})"
        save_picture(column(answer.token_map.pictures_with_places()), boxes, what)


def _picture(path: str) -> str | bytes:
    """Return the path of a picture, or the bytes of standard input if the path is -."""
    if path != "-":
        return path
    if sys.stdin.isatty():
        raise InvalidInput("- is a picture from standard input, which is a terminal here; pipe a picture into tops.")
    return sys.stdin.buffer.read()


def _shown(pieces: "Iterable[Piece | Answer]", hidden: bool) -> "Answer":
    """Print the pieces of an answer, the reasoning to stderr, unless they are hidden; return the answer."""
    from tops_engine.answers.base import ReasoningPiece
    from tops_engine.answers.report import Answer

    thinks = False
    for piece in pieces:
        if isinstance(piece, Answer):
            answer = piece
        elif hidden:
            continue
        elif isinstance(piece, ReasoningPiece):
            thinks = True
            err.print(piece.text, end="", style="dim", markup=False, highlight=False, soft_wrap=True)
        else:
            if thinks:
                err.print("\n")
            thinks = False
            out.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    return answer
