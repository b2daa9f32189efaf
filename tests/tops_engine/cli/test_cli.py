"""Test the `tops` command: what it prints, writes and refuses."""

import importlib.metadata
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import tops_engine
from tests.conftest import Picture, Tops
from tests.support.checkpoints_qwen import save_qwen3_vl
from tests.support.checkpoints_video import save_onevision
from tests.support.clips import clip
from tops_engine.media.token_map import HEADER, MARGIN, PANEL
from tops_engine.settings import Generation, ModelSpec, pruning_fields


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory, picture: Picture) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    picture().save(path)
    return path


def test_ask_prints_the_answer_and_on_stderr_what_it_took(
    tops: Tops, llava_folder: Path, photo: Path, llava_engine: tops_engine.Engine
) -> None:
    result = tops("ask", photo, "What is this?", "--model", llava_folder, "--device", "cpu", "--max-tokens", 5)

    messages = [tops_engine.user_message("What is this?", photo)]
    answer = llava_engine.chat(messages, generation=Generation(max_tokens=5))
    assert result.code == 0
    assert result.out == answer.text + "\n"
    assert "16 visual tokens → 7 → 2 → 1 (layer-average 3.6, 22.7 %)\n" in result.err


def test_ask_as_json_holds_everything_measured(tops: Tops, llava_folder: Path, photo: Path) -> None:
    options = ("--method", "random", "--keep", 8, "--selection-seed", 3, "--max-tokens", 2, "--device", "cpu")
    result = tops("ask", photo, photo, "What is this?", "--model", llava_folder, "--json", *options)

    assert result.code == 0
    answer = json.loads(result.out)
    assert answer["usage"]["visual_tokens"] == 32
    assert answer["usage"]["stages"] == [{"layer": 0, "visual_tokens": [8, 8], "rating_layer": None}]
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["pruning"]["selection_seed"] == 3
    assert set(answer["timings"]) == {"prepare", "vision", "selection", "prefill", "decode", "deciding", "total"}
    assert min(answer["flops"][part] for part in ("vision", "prefill", "decode")) > 0
    assert isinstance(answer["text"], str)


def test_ask_takes_a_picture_from_standard_input(
    tops: Tops, llava_folder: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--model", llava_folder, "--device", "cpu", "--max-tokens", 5)
    expected = tops("ask", photo, "What is this?", *options).out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photo.read_bytes())))
    assert tops("ask", "-", "What is this?", *options).out == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    result = tops("ask", "-", "What is this?", *options)
    assert result.code == 1
    assert "not a picture in a known format" in result.err


@pytest.mark.parametrize("arguments", [["-"], ["photo.jpg", "-"], ["-", "-", "What?"]])
def test_a_picture_from_standard_input_comes_once_and_before_the_question(tops: Tops, arguments: list[str]) -> None:
    result = tops("ask", *arguments)
    assert result.code == 1
    assert "put it before the question, and only once" in " ".join(result.err.split())


def test_a_terminal_is_no_picture(tops: Tops, monkeypatch: pytest.MonkeyPatch) -> None:
    primary, secondary = os.openpty()
    with os.fdopen(primary, "rb"), os.fdopen(secondary) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        result = tops("ask", "-", "What?")
    assert result.code == 1
    assert "pipe a picture into tops" in " ".join(result.err.split())


def test_ask_continues_the_beginning_of_an_answer(
    tops: Tops, llava_folder: Path, photo: Path, llava_engine: tops_engine.Engine
) -> None:
    options = ("--model", llava_folder, "--device", "cpu", "--max-tokens", 5)
    result = tops("ask", photo, "What is this?", "--prefill", "It is", *options)
    messages = [tops_engine.user_message("What is this?", photo), {"role": "assistant", "content": "It is"}]
    answer = llava_engine.chat(messages, generation=Generation(max_tokens=5))
    assert result.out == answer.text + "\n"


def test_an_answer_follows_a_schema(tops: Tops, photo: Path, llava_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"enum": ["a red circle", "a blue square"]}')
    for schema in (tmp_path / "schema.json", '{"enum": ["a red circle", "a blue square"]}'):
        result = tops("ask", photo, "What?", "--model", llava_folder, "--device", "cpu", "--json-schema", schema)
        assert result.out.strip() in ('"a red circle"', '"a blue square"')


def test_ask_without_a_picture_is_a_plain_question(tops: Tops, llava_folder: Path) -> None:
    result = tops("ask", "What is this?", "--model", llava_folder, "--device", "cpu", "--max-tokens", 1)

    assert result.code == 0
    assert result.err.startswith("no picture\nprompt 10 tokens, answer 1 tokens (length)\n")


def test_ask_writes_the_picture_of_the_kept_tokens(tops: Tops, llava_folder: Path, photo: Path, tmp_path: Path) -> None:
    target = tmp_path / "kept.png"
    options = ("--schedule", "0:8,4:2", "--max-tokens", 1, "--device", "cpu", "--map", target)
    result = tops("ask", photo, "What is this?", "--model", llava_folder, *options)

    assert result.code == 0
    with Image.open(target) as drawn:
        drawn.load()
        # The picture and two stages.
        assert drawn.width == MARGIN + 3 * (PANEL + MARGIN)
        assert drawn.height > HEADER + PANEL


def test_ask_writes_the_pictures_with_their_boxes(tops: Tops, photo: Path, tmp_path: Path) -> None:
    entry = {"bbox_2d": [250, 250, 750, 750], "label": "cat"}
    schema = {"properties": {name: {"const": value} for name, value in entry.items()}, "required": list(entry)}
    (tmp_path / "schema.json").write_text(json.dumps(schema | {"type": "object", "additionalProperties": False}))
    Image.new("RGB", (80, 40), "white").save(tmp_path / "white.png")
    model = save_qwen3_vl(tmp_path / "model")
    options = ("--model", model, "--device", "cpu", "--json-schema", tmp_path / "schema.json", "--keep", 0.5)
    target = tmp_path / "boxes.png"
    result = tops("ask", photo, tmp_path / "white.png", "Find the cat.", *options, "--json", "--boxes", target)

    assert result.code == 0, result.err
    assert "Boxes (1) and points (0): " in result.err.replace("\n", " ")
    read = json.loads(result.out)
    assert read["boxes"] == [{"label": "cat", "picture": 1, "left": 20.0, "top": 10.0, "right": 60.0, "bottom": 30.0}]
    assert read["points"] == []
    with Image.open(target) as drawn, Image.open(photo) as first:
        # The first picture as it was, and below it the second one, with a frame.
        assert drawn.crop((0, 0, *first.size)).tobytes() == first.convert("RGB").tobytes()
        second = drawn.crop((0, drawn.height - 40, 80, drawn.height))
        assert second.getpixel((20, 20)) != (255, 255, 255) == second.getpixel((40, 20))
    refused = tops("ask", "Find the cat.", *options, "--boxes", target)
    assert "--boxes needs a picture in the question." in refused.err


def test_a_picture_may_have_its_own_budget(tops: Tops, llava_folder: Path, photo: Path, tmp_path: Path) -> None:
    for name in ("a.png@0.5", "me@home.png"):
        (tmp_path / name).write_bytes(photo.read_bytes())
    named = tmp_path / "a.png@0.5"
    pictures = (f"{photo}@0.5", f"{photo}@4", named, f"{named}@1.0", tmp_path / "me@home.png")
    options = ("--model", llava_folder, "--device", "cpu", "--method", "random", "--keep", 0.75, "--max-tokens", 1)
    result = tops("ask", *pictures, "What is this?", *options, "--json")

    assert result.code == 0, result.err
    (stage,) = json.loads(result.out)["usage"]["stages"]
    assert stage["visual_tokens"] == [8, 4, 12, 16, 12]


def test_ask_about_videos_after_a_picture(tops: Tops, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(clip(20))
    (tmp_path / "other.gif").write_bytes(clip(5, "gif", "gif"))
    videos = ("--video", tmp_path / "clip.mp4", "--video", tmp_path / "other.gif", "--num-frames", 3)
    options = ("--model", save_onevision(tmp_path / "model"), "--device", "cpu", "--max-tokens", 1)
    result = tops("ask", photo, "What happens?", *videos, *options, "--json", "--map", tmp_path / "kept.png")

    assert result.code == 0
    usage = json.loads(result.out)["usage"]
    assert usage["video_frames"] == [3, 3]
    assert len(usage["stages"][0]["visual_tokens"]) == 3
    with Image.open(tmp_path / "kept.png") as drawn:
        # The picture's overview and tiles, and three frames of each video.
        assert drawn.height > HEADER + 2 * PANEL + 6 * PANEL // 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "/nowhere/photo.png", "What?", "--model", "FOLDER"], "There is no picture at /nowhere/photo.png."),
        (["ask", "What?", "--keep", "1.5"], "keep='1.5' is not allowed"),
        (["ask", "What?", "--method", "magic"], "There is no method 'magic'"),
        (["ask", "What?", "--method", "random", "--alpha", "1"], "There is no option 'alpha'"),
        (["ask", "What?", "--keep", "0.3", "--schedule", "0:64"], "keep and schedule both set the budget"),
        (["ask", "What?", "--max-tokens", "0"], "max_tokens='0' is not allowed"),
        (["ask", "What?", "--device", "tpu"], "device='tpu' is not allowed"),
        (["ask", "What?", "--compile", "--quantization", "4bit"], "compile does not take quantised weights"),
        (["ask", "What?", "--model", "/nowhere/model"], "There is no folder '/nowhere/model'."),
        (["ask", "What?", "--model", "FOLDER", "--map", "map.png"], "--map needs a picture"),
        (["ask", "PHOTO", "What?", "--model", "FOLDER", "--map", "/nowhere/map.png"], "/nowhere/map.png"),
        (["ask", "PHOTO", "What?", "--model", "FOLDER", "--max-tokens", "1", "--map", "TMP/map.xyz"], "map.xyz"),
        (["ask", "PHOTO@2.5", "What?", "--model", "FOLDER"], "keep='2.5' of a picture or video is not allowed"),
        (["ask", "PHOTO@jpg", "What?", "--model", "FOLDER"], "There is no picture at"),
        (["ask", "/nowhere/photo.png@0.5", "What?", "--model", "FOLDER"], "There is no picture at /nowhere/photo.png."),
        (["ask", " ", "--model", "FOLDER"], "The prompt is empty"),
        (["ask", "What?", "--video", "/nowhere/clip.mp4"], "There is no video at /nowhere/clip.mp4."),
        (["ask", "What?", "--video", "PHOTO"], "photo.png is damaged, or not a video in a known format"),
        (["ask", "What?", "--video", "PHOTO", "--num-frames", "0"], "num_frames=0 is not allowed"),
        (["compare", "PHOTO", "What?", "--methods", "tops,magic"], "There is no method 'magic'"),
        (["compare", "PHOTO", "What?", "--keep", "0.5,2.5"], "keep='2.5' is not allowed"),
        (["compare", "PHOTO"], "give one question after it"),
        (["compare", "PHOTO", "What?", "-o", "TMP/map.xyz"], "-o, --plot and --against are for folders"),
        (["ask", "What?", "--pruning", "/nowhere/pruning.json"], "/nowhere/pruning.json cannot be read"),
        (["ask", "What?", "--pruning", "PHOTO"], "is not JSON"),
    ],
)
def test_an_error_is_one_line_on_stderr_and_exit_code_1(
    tops: Tops, llava_folder: Path, photo: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {"FOLDER": str(llava_folder), "PHOTO": str(photo), "TMP/map.xyz": str(tmp_path / "map.xyz")}
    result = tops(*(places.get(argument, argument) for argument in arguments))

    assert result.code == 1
    last = result.err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last
    if "TMP/map.xyz" not in arguments:
        assert result.err.count("\n") == 1
        assert result.out == ""


def test_an_unknown_flag_is_a_usage_error(tops: Tops) -> None:
    result = tops("ask", "What?", "--kep", "0.3")

    assert result.code == 2
    assert "--kep" in result.err


def test_every_setting_is_a_flag_of_ask(tops: Tops) -> None:
    result = tops("ask", "--help")

    settings = [*ModelSpec.model_fields, *pruning_fields(), *Generation.model_fields]
    words = result.out.split()
    assert result.code == 0
    assert [name for name in settings if f"--{name.replace('_', '-')}" not in words] == []


def test_flags_reach_the_settings_with_their_values(tops: Tops, llava_folder: Path, photo: Path) -> None:
    pruning = ("--keep", 0.5, "--alpha", 0.25, "--lambda", 0.75, "--criteria", "coverage", "--raters", "last")
    generation = ("--max-tokens", 3, "--temperature", 0.5, "--top-k", 5, "--seed", 7, "--stop", "a", "--stop", "b")
    result = tops("ask", photo, "What?", "--model", llava_folder, "--device", "cpu", "--json", *pruning, *generation)

    assert result.code == 0
    used = json.loads(result.out)["pruning"]
    assert (used["keep"], used["alpha"], used["lambda"], used["raters"]) == (0.5, 0.25, 0.75, "last")
    assert used["criteria"] == ["coverage"]
    text = json.loads(result.out)["text"]
    assert "a" not in text
    assert "b" not in text


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_an_answer_the_terminal_cannot_spell_is_printed_with_replacements(
    tops: Tops, llava_folder: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, form: list[str]
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    result = tops("ask", photo, "What is this?", "--model", llava_folder, "--device", "cpu", "--max-tokens", 12, *form)

    assert result.code == 0
    assert b"?" in written.getvalue()


def test_doctor_lists_versions_devices_and_the_way_to_what_is_missing(tops: Tops) -> None:
    result = tops("doctor")

    assert result.code == 0
    for name in ("torch", "transformers", "tokenizers", "accelerate"):
        assert importlib.metadata.version(name) in result.out
    assert tops_engine.__version__ in result.out
    for topic in ("cpu", "memory", "mini", "hub", "flash-attn", "bitsandbytes"):
        assert topic in result.out
    missing = [line for line in result.out.splitlines() if "not installed" in line]
    assert all("pip install" in line for line in missing)


@pytest.fixture
def endless_folder(llava_folder: Path, tmp_path: Path) -> Path:
    """Save a checkpoint whose answers end only at the token limit."""
    folder = shutil.copytree(llava_folder, tmp_path / "endless")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 1_000_000}))
    return folder


def test_ctrl_c_ends_an_answer_at_once_with_exit_code_130(endless_folder: Path, photo: Path) -> None:
    options = ["--model", str(endless_folder), "--device", "cpu", "--max-tokens", "100000"]
    command = [sys.executable, "-m", "tops_engine.cli", "ask", str(photo), "What is this?", *options]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(tops_engine.__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            # Once it writes, it is in the middle of an answer of up to two thousand tokens.
            assert select.select([process.stdout], [], [], 120)[0], "it never began to answer"
            os.kill(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()

    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert b"written" not in errors, "it had ended before it was interrupted"
