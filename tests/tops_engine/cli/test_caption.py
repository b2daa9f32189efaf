"""Test `tops caption`: what it writes, continues and refuses."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import Picture, Tops
from tests.support.commands import running_until
from tops_engine.captioning.asking import HOPELESS
from tops_engine.captioning.prompts import PROMPTS
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.settings import Generation, Pruning

NAMES = ["a/deep/x.webp", "a/y.JPG", "a.png", "b.png", "c.png"]


@pytest.fixture
def folder(tmp_path: Path, picture: Picture) -> Path:
    """Write five pictures at three folder depths, and a file that is no picture."""
    folder = tmp_path / "pictures"
    (folder / "a" / "deep").mkdir(parents=True)
    (folder / ".cache").mkdir()
    for seed, name in enumerate(NAMES):
        picture(40 + 7 * seed, 50, seed).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".cache" / "z.png").write_bytes(b"not looked at")
    return folder


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    return tmp_path / "captions.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def options(llava_folder: Path, captions: Path, *more: object) -> list[object]:
    return ["-o", captions, "--model", llava_folder, "--device", "cpu", "--max-tokens", 3, *more]


def test_each_picture_gets_a_line_in_order(
    tops: Tops, llava_folder: Path, llava_engine: Engine, folder: Path, captions: Path
) -> None:
    result = tops("caption", folder, *options(llava_folder, captions, "--keep", 0.25, "--batch-size", 2))
    assert result.code == 0, result.err
    assert "5 captioned in" in result.err
    assert "Left out: 1 .txt, 1 hidden." in result.err
    header, *found = lines(captions)
    assert header["prompt"] == PROMPTS["caption"]
    assert header["pruning"] == Pruning(keep=0.25).resolved()
    assert [line["picture"] for line in found] == NAMES
    for line in found:
        question = [user_message(PROMPTS["caption"], folder / line["picture"])]
        answer = llava_engine.chat(question, Pruning(keep=0.25), Generation(max_tokens=3))
        assert line.pop("seconds") > 0
        assert line == {
            "picture": line["picture"],
            "caption": " ".join(answer.text.split()),
            "finish_reason": "length",
            # Of 16, twice the 4 that stay on average enter the language model.
            "prompt_tokens": answer.usage.prompt_tokens - 8,
            "visual_tokens": 8,
            "completion_tokens": 3,
        }


def test_failed_and_new_pictures_get_their_line_in_its_place(
    tops: Tops, llava_folder: Path, folder: Path, captions: Path, picture: Picture
) -> None:
    arguments = ["caption", folder, *options(llava_folder, captions, "--prompt", "What?")]
    (folder / "b.png").write_bytes(b"broken")
    first = tops(*arguments)
    assert first.code == 1
    assert "Failed b.png: " in first.err
    assert f"1 picture has no caption; {captions} says why, and the same command tries again." in first.err
    before = lines(captions)
    assert [line["picture"] for line in before[1:]] == NAMES
    assert set(before[4]) == {"picture", "error"}

    picture(30, 30, 8).save(folder / "b.png")
    picture(30, 30, 9).save(folder / "a" / "deep" / "0.png")
    second = tops(*arguments)
    assert second.code == 0
    assert "2 captioned in" in second.err
    assert "4 captioned before" in second.err
    after = lines(captions)
    assert [line["picture"] for line in after[1:]] == ["a/deep/0.png", *NAMES]
    assert [line for line in after if line in before] == [line for line in before if "error" not in line]
    whole = captions.read_bytes()
    third = tops(*arguments)
    assert third.code == 0
    assert "Nothing to do: all 6 pictures are captioned." in third.err
    assert captions.read_bytes() == whole


def test_a_cut_line_is_written_anew_and_other_settings_are_refused(
    tops: Tops, llava_folder: Path, folder: Path, captions: Path
) -> None:
    arguments = ["caption", folder, *options(llava_folder, captions)]
    assert tops(*arguments).code == 0
    texts = [line["caption"] for line in lines(captions)[1:]]
    captions.write_bytes(captions.read_bytes()[:-30])
    assert tops(*arguments).code == 0
    continued = captions.read_bytes()
    assert [line["caption"] for line in lines(captions)[1:]] == texts

    for more, what in (
        (["--prompt", "What?"], "prompt"),
        (["--style", "tags"], "prompt"),
        (["--keep", 0.5], "pruning"),
        (["--temperature", 1], "generation"),
        (["--dtype", "bfloat16"], "model"),
    ):
        result = tops(*arguments, *more)
        assert result.code == 1
        assert f"holds the results of another run (different: {what})" in result.err
        assert captions.read_bytes() == continued
    # Where and how fast it runs is nobody's matter.
    assert tops(*arguments, "--batch-size", 1, "--attention", "eager").code == 0


def test_text_files_are_written_beside_pictures_that_have_none(
    tops: Tops, llava_folder: Path, folder: Path, captions: Path
) -> None:
    (folder / "b.txt").write_text("mine")
    (folder / "c.txt").write_text("")
    result = tops("caption", folder, *options(llava_folder, captions, "--write-txt"))
    assert result.code == 0
    assert "1 existing text files kept" in result.err
    found = {line["picture"]: line["caption"] for line in lines(captions)[1:]}
    for name in NAMES:
        text = (folder / name).with_suffix(".txt").read_text().strip()
        assert text == ("mine" if name == "b.png" else found[name])
    (folder / "a.txt").unlink()
    assert tops("caption", folder, *options(llava_folder, captions, "--write-txt")).code == 0
    assert (folder / "a.txt").read_text().strip() == found["a.png"]


def test_a_dry_run_asks_and_writes_nothing(tops: Tops, llava_folder: Path, folder: Path, captions: Path) -> None:
    (folder / "b.txt").write_text("mine")
    before = sorted(folder.rglob("*"))
    arguments = ["caption", folder, *options(llava_folder, captions, "--write-txt", "--trigger", "sks", "--dry-run")]
    result = tops(*arguments)
    assert result.code == 0
    assert result.out.split() == NAMES
    assert result.err == (
        "Would caption 5 of 5 pictures, 1 existing text files would be kept. Each caption becomes: sks, ... "
        "Left out: 2 .txt, 1 hidden.\n"
    )
    assert sorted(folder.rglob("*")) == before
    assert not captions.exists()


def test_trigger_word_and_text_around_go_into_the_results_and_the_text_files(
    tops: Tops, llava_folder: Path, folder: Path, captions: Path, tmp_path: Path
) -> None:
    assert tops("caption", folder, *options(llava_folder, captions, "--write-txt")).code == 0
    plain = {line["picture"]: line["caption"] for line in lines(captions)[1:]}
    words = ["--trigger", "sks", "--prefix", "A photo of", "--suffix", ", film grain"]
    refused = tops("caption", folder, *options(llava_folder, captions, *words))
    assert "holds the results of another run (different: text)" in refused.err
    other, preview = tmp_path / "other.jsonl", tmp_path / "preview.png"
    overwriting = ["--write-txt", "--existing-txt", "overwrite", "--preview", preview]
    assert tops("caption", folder, *options(llava_folder, other, *words, *overwriting)).code == 0
    for line in lines(other)[1:]:
        assert line["caption"] == f"A photo of sks, {plain[line['picture']]}, film grain"
        assert (folder / line["picture"]).with_suffix(".txt").read_text().strip() == line["caption"]
    assert Image.open(preview).height > 5 * 160


def test_a_text_file_that_cannot_be_read_fails_alone_and_the_next_run_goes_on(
    tops: Tops, llava_folder: Path, folder: Path, captions: Path, picture: Picture
) -> None:
    long_name = f"{'n' * 251}.png"
    picture(40, 50, 9).save(folder / long_name)
    foreign = "café".encode("cp1252")
    (folder / "b.txt").write_bytes(foreign)
    (folder / "c.txt").mkdir()
    arguments = ["caption", folder, *options(llava_folder, captions, "--write-txt")]
    for number in range(2):
        result = tops(*arguments)
        assert result.code == 1
        assert f"Failed b.png: The text file {folder / 'b.txt'} is not UTF-8 text" in result.err
        assert "Failed c.png: " in result.err
        assert f"2 text files were not written; {captions} has the captions" in result.err
        assert ("6 captioned in" if number == 0 else "all 6 pictures are captioned") in result.err
        found = {line["picture"]: line["caption"] for line in lines(captions)[1:]}
        assert list(found) == [*NAMES, long_name]
        assert (folder / "b.txt").read_bytes() == foreign
        for name in ("a.png", long_name):
            assert (folder / name).with_suffix(".txt").read_text().strip() == found[name]
    (folder / "b.txt").unlink()
    (folder / "c.txt").rmdir()
    assert tops(*arguments).code == 0
    assert (folder / "b.txt").read_text().strip() == found["b.png"]


def test_pictures_that_would_share_a_text_file_are_named_before_anything_is_asked(
    tops: Tops, llava_folder: Path, folder: Path, captions: Path, picture: Picture
) -> None:
    picture(30, 30).save(folder / "b.jpg")
    result = tops("caption", folder, *options(llava_folder, captions, "--write-txt"))
    assert result.code == 1
    assert f"would share one .txt file: b.jpg and b.png in {folder}. Rename or move" in result.err
    assert not captions.exists()
    # Without text files nothing is shared.
    assert tops("caption", folder, *options(llava_folder, captions)).code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes only there")
def test_a_name_that_is_not_text_comes_back(tops: Tops, llava_folder: Path, folder: Path, captions: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x8d\x8e.png")
    shutil.copy(folder / "b.png", folder / name)
    assert tops("caption", folder, *options(llava_folder, captions)).code == 0
    assert name in [line["picture"] for line in lines(captions)[1:]]
    assert "Nothing to do" in tops("caption", folder, *options(llava_folder, captions)).err


def test_faults_are_one_sentence(
    tops: Tops, llava_folder: Path, folder: Path, captions: Path, tmp_path: Path, picture: Picture
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "none"], "There is no folder"),
        ([folder / "b.png"], "There is no folder"),
        ([empty], "There are no pictures in"),
        ([folder, "--style", "poem"], "There is no style 'poem'; choose one of caption, tags,"),
        ([folder, "--prompt", " "], "The prompt is empty"),
        ([folder, "-o", tmp_path / "no" / "where.jsonl"], "There is no folder to write"),
        ([folder, "-o", folder / "notes.txt"], "is not a results file of this command"),
    ]
    for arguments, message in cases:
        result = tops("caption", *options(llava_folder, captions), *arguments)
        assert result.code == 1
        assert message in result.err
        assert result.err.count("\n") == 1
    for number in range(HOPELESS):
        picture(20, 20, number).save(folder / f"more{number}.png")
    result = tops("caption", folder, *options(llava_folder, captions, "--method", "random", "--keep", 0.001))
    assert result.code == 1
    assert (
        f"None of the first {HOPELESS} pictures could be captioned; the last: keep=0.001 leaves less than one"
        in result.err
    )


# The other signal is tried on the other command that writes a journal.
@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.full)])
def test_a_stopped_run_continues(
    tops: Tops, llava_folder: Path, folder: Path, captions: Path, how: signal.Signals
) -> None:
    for number in range(60):
        shutil.copy(folder / "b.png", folder / f"copy{number:02}.png")
    arguments = ["caption", folder, *options(llava_folder, captions, "--batch-size", 2)]
    with running_until(arguments, captions, 4) as process:
        os.kill(process.pid, how)
        _, errors = process.communicate(timeout=30)
    stopped = [json.loads(line) for line in captions.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert len(stopped) < 60
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert b"the same command continues" in errors
        assert b"Traceback" not in errors
        assert captions.read_bytes().endswith(b"\n")

    result = tops(*arguments)
    assert result.code == 0, result.err
    assert f"{len(stopped) - 1} captioned before" in result.err
    found = lines(captions)[1:]
    assert [line["picture"] for line in found] == [*NAMES[:4], "c.png", *(f"copy{n:02}.png" for n in range(60))]
    assert all(line in found for line in stopped[1:])
