"""Test `tops compare` of one video: the table, the methods that `all` names, and the strips of frames."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Picture, Tops
from tests.support.checkpoints_video import save_onevision
from tests.support.clips import clip
from tops_engine.comparison.one_picture import Row, compare_prunings
from tops_engine.comparison.video_maps import draw_strips
from tops_engine.conversation.messages import user_message, video_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput
from tops_engine.evaluation.data_set import Clips
from tops_engine.media.colours import BAR
from tops_engine.media.frame_strip import BARS
from tops_engine.settings import Generation, ModelSpec, Pruning
from tops_engine.settings.labels import read_labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_onevision(tmp_path_factory.mktemp("onevision"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.load(ModelSpec(model=str(folder), device="cpu"))


def test_a_video_file_is_compared_and_drawn(tops: Tops, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(clip(12))
    chosen = ("--methods", "tops,vidcom2,evs", "--keep", "0.4", "--num-frames", 6, "--repeats", 1)
    options = ("--model", folder, "--device", "cpu", "--max-tokens", 1, "--map", tmp_path / "maps.png")
    result = tops("compare", tmp_path / "clip.mp4", "What happens?", *chosen, *options)
    assert result.code == 0
    rows = {line.split()[0]: re.split(r"\s{2,}", line.strip()) for line in result.out.splitlines() if line.strip()}
    assert rows["vidcom2"][0] == "vidcom2 0.4"
    assert {"unpruned", "tops", "vidcom2", "evs"} <= rows.keys()
    with Image.open(tmp_path / "maps.png") as drawn:
        bars = (np.asarray(drawn) == BAR).all(axis=2).any(axis=1)
    # The highest bar of each of the four strips has the full height.
    assert int(bars.sum()) == 4 * BARS


def test_the_bars_are_the_tokens_that_the_answers_report(engine: Engine, picture: Picture) -> None:
    frames = [picture(60, 60, seed) for seed in range(4)]
    rows = compare_prunings(
        engine,
        [video_message("What?", frames)],
        [Pruning(method="evs", keep=0.5)],
        Generation(max_tokens=1),
        repeats=1,
    )
    (_, pruned) = rows
    assert isinstance(pruned, Row)
    kept = [frame.layer_average for frame in pruned.answer.usage.pictures[0].frames]
    drawn = (np.asarray(draw_strips(rows, "What?", engine.family.decoder.num_layers)) == BAR).all(axis=2)
    lower = drawn[drawn.shape[0] // 2 :]
    heights = [int(lower[:, 12 + round((place + 0.5) * 275)].sum()) for place in range(4)]
    assert heights == [round(BARS * tokens / max(kept)) for tokens in kept]
    assert heights[0] == BARS > min(heights), "the first frame stays whole"


def test_strips_are_of_videos(engine: Engine, picture: Picture) -> None:
    rows = compare_prunings(engine, [user_message("What?", picture())], [], Generation(max_tokens=1), repeats=1)
    with pytest.raises(InvalidInput, match="show a video"):
        draw_strips(rows, "What?", engine.family.decoder.num_layers)


def test_all_names_methods_for_videos_only_for_a_video() -> None:
    pictures, videos = set(read_labels("all")), set(read_labels("all", videos=True))
    assert videos - pictures == {"dycoke", "evs", "fastvid", "flashvid", "holitom", "prunevid", "vidcom2"}
    assert pictures < videos
    assert read_labels("evs,tops") == ["evs", "tops"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FOLDER", "What?", "--num-frames", "4"], "There are no videos in"),
        (["CLIP"], "is one video: give one question after it"),
        (["CLIP", "What?", "-o", "results.jsonl"], "-o, --plot and --against are for folders"),
        (["PHOTO", "What?", "--fps", "2"], "damaged, or not a video"),
        (["/nowhere/clip.mp4", "What?"], "There is no video"),
    ],
)
def test_what_cannot_be_compared_is_said(
    tops: Tops, picture: Picture, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "clip.mp4").write_bytes(clip(3))
    picture().save(tmp_path / "photo.png")
    (tmp_path / "pictures").mkdir()
    picture().save(tmp_path / "pictures" / "photo.png")
    paths = {"FOLDER": tmp_path / "pictures", "CLIP": tmp_path / "clip.mp4", "PHOTO": tmp_path / "photo.png"}
    result = tops("compare", *(paths.get(argument, argument) for argument in arguments))
    assert result.code != 0
    assert message in " ".join(result.err.split())


def moving_square(shade: int, step: int) -> bytes:
    """Return a clip of a square that moves to the right by ``step`` pixels a frame."""
    frames = [Image.new("RGB", (64, 48), "white") for _ in range(8)]
    for index, frame in enumerate(frames):
        frame.paste((shade, 0, 255 - shade), (step * index, 16, step * index + 16, 32))
    return clip(frames)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of two clips, a file that is none, and a text."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.mp4").write_bytes(moving_square(80 * number, 1 + number))
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("nothing to see")
    return folder


def test_a_folder_of_clips_is_compared(tops: Tops, folder: Path, clips: Path, tmp_path: Path) -> None:
    chosen = ("--methods", "tops,evs", "--keep", "0.3", "--against", "tops", "-o", tmp_path / "results.jsonl")
    result = tops("compare", clips, "What moves?", *chosen, "--model", folder, "--device", "cpu", "--max-tokens", 2)
    assert result.code == 0
    assert "2 questions about" in result.out
    assert "Skipped broken.mp4" in result.err
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()][1:]
    assert [(one["picture"], one["name"]) for one in records[:3]] == [
        ("0.mp4", "none 1.0"), ("0.mp4", "tops 0.3"), ("0.mp4", "evs 0.3")
    ]  # fmt: skip
    unpruned, *pruned = (one["layer_average"] for one in records[:3])
    # The budget is a share of the tokens of the whole clip.
    assert pruned == pytest.approx([0.3 * unpruned] * 2, abs=1)


def test_a_clip_of_which_other_frames_are_taken_is_another_one(clips: Path) -> None:
    def digests(num_frames: int | None) -> list[str]:
        data = Clips.read_videos(clips, None, "What moves?", num_frames, None)
        found = [question.digest for question in data.questions()]
        assert list(data.skipped) == ["broken.mp4"]
        assert data.left_out == {".txt": 1}
        return found

    assert digests(4) == digests(4)
    assert not set(digests(4)) & {*digests(8), *digests(None)}
