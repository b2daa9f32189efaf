"""`tops ask`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from tops_engine.cli.app import app
from tops_engine.cli.options import takes_settings
from tops_engine.cli.output import check_folder, err, load_engine, out, read_video, save_picture
from tops_engine.errors import InvalidInput
from tops_engine.settings import Generation, ModelSpec, Pruning

if TYPE_CHECKING:
    from tops_engine.answers.report import Answer


@app.command()
@takes_settings
def ask(
    images_and_question: Annotated[
        list[str], typer.Argument(metavar="[IMAGE]... QUESTION", help="Pictures, then what to ask about them.")
    ],
    spec: ModelSpec,
    pruning: Pruning,
    generation: Generation,
    video: Annotated[
        list[Path] | None, typer.Option("--video", help="A video to ask about, after the pictures.")
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option(help="Most frames to take of each video, spread evenly. [default: 16]")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second to take of each video, up to num-frames or 768.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the answer and everything measured as JSON.")] = False,
    map: Annotated[Path | None, typer.Option("--map", help="Write the picture of the kept tokens here.")] = None,
) -> None:
    """Ask a question about pictures or videos."""
    from tops_engine.answers.report import Answer
    from tops_engine.conversation.messages import user_message

    check_folder(map)
    *images, question = images_and_question
    if map is not None and not images and not video:
        raise InvalidInput("--map needs a picture or a video in the question.")
    message = user_message(question, *images)
    videos = [{"type": "video", "video": read_video(path, num_frames, fps)} for path in video or []]
    messages = [message | {"content": [*message["content"][:-1], *videos, message["content"][-1]]}]
    for piece in load_engine(spec).stream(messages, pruning, generation):
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
        save_picture(answer.token_map.draw(), map)


def _summary(answer: "Answer") -> str:
    usage, timings = answer.usage, answer.timings
    stages = " → ".join(str(sum(stage.visual_tokens)) for stage in usage.stages)
    tokens = f"{usage.visual_tokens} visual tokens → {stages} (layer-average {usage.layer_average:.1f})"
    if usage.video_frames:
        tokens = f"{sum(usage.video_frames)} frames, {tokens}"
    return (
        f"{tokens if usage.visual_tokens else 'no picture'}, {usage.completion_tokens} written, first token after "
        f"{timings.first_token:.3f} s, {timings.total:.3f} s in all, {answer.flops.total / 1e9:.3g} GFLOPs"
    )
