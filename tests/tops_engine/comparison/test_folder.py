"""Test `tops compare` of a folder: what it asks, writes, continues and refuses."""

import json
import os
import shutil
import signal
import statistics
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import Picture, Tops
from tests.support.commands import running_until
from tops_engine.comparison.folder import compare_folder
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput
from tops_engine.evaluation.data_set import DataSet
from tops_engine.settings import Generation, Pruning

PROMPTS = ["What is this?", "Which colour?"]


@pytest.fixture
def folder(tmp_path: Path, picture: Picture) -> Path:
    """Write three pictures, one of them in a subfolder, and a file that is no picture."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    picture(60, 50, 1).save(folder / "b.png")
    picture(50, 60, 2).save(folder / "a.JPG")
    picture(56, 56, 3).save(folder / "deep" / "c.webp")
    (folder / "broken.png").write_bytes(b"\x89PNG broken")
    (folder / ".hidden.png").write_bytes(b"not looked at")
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff" + f"{PROMPTS[0]}\n\n  {PROMPTS[1]}  \n{PROMPTS[0]}\n", encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def options(llava_folder: Path, results: Path, *more: object) -> list[object]:
    return ["--model", llava_folder, "--device", "cpu", "--max-tokens", 3, "-o", results, *more]


def test_differences_are_those_of_the_answers_both_gave(llava_engine: Engine, folder: Path) -> None:
    """Compare with the fidelities in the results; the intervals hold the differences."""
    data = DataSet.read(folder, None, PROMPTS[0])
    prunings = [Pruning(method=method, keep=keep) for keep in (0.5, 0.2) for method in ("tops", "random", "fastv")]
    result = compare_folder(llava_engine, data, prunings, Generation(max_tokens=3), against=["random"])
    assert [(one.name, one.against) for one in result.differences] == [
        ("tops 0.5", "random 0.5"),
        ("fastv 0.5", "random 0.5"),
        ("tops 0.2", "random 0.2"),
    ], "fastv cannot meet 0.2"
    summaries = {f"{one.pruning.label} {one.pruning.keep}": one for one in result.summaries}
    for one in result.differences:
        first, second = summaries[one.name], summaries[one.against]
        assert first.loss_increase is not None
        assert second.loss_increase is not None
        expected = first.loss_increase.value - second.loss_increase.value
        assert one.loss_increase.value == pytest.approx(expected, abs=1e-6)
        assert one.loss_increase.bounds is None
    table = str(result.differences_table())
    assert "tops 0.2 minus random 0.2" in table
    assert table.count("too few pictures") == 6
    with pytest.raises(InvalidInput, match="Nothing measures 'scope' to compare with"):
        compare_folder(llava_engine, data, prunings, Generation(max_tokens=3), against=["scope"])


def test_each_prompt_is_asked_about_each_picture_with_each_pruning(
    tops: Tops, llava_folder: Path, folder: Path, prompts: Path, tmp_path: Path
) -> None:
    results, plot = tmp_path / "results.jsonl", tmp_path / "plot.png"
    methods = ("--methods", "tops,fastv", "--keep", "0.5,0.2", "--plot", plot)
    result = tops("compare", folder, "--prompts", prompts, *options(llava_folder, results, *methods))

    assert result.code == 0, result.err
    header, *records = lines(results)
    assert header["prompts"] == PROMPTS
    assert header["generation"]["max_tokens"] == 3
    assert str(tmp_path) not in json.dumps(header["folder"])
    asked = [(record["picture"], record["prompt"], record["name"]) for record in records]
    names = ["none 1.0", "tops 0.5", "fastv 0.5", "tops 0.2", "fastv 0.2"]
    pictures = ["a.JPG", "b.png", "deep/c.webp"]
    assert sorted(asked) == sorted((p, q, n) for p in pictures for q in PROMPTS for n in names)
    # The pictures come sorted, and another pruning goes first each time.
    assert [p for p, _, _ in asked[:: len(names) * 2]] == pictures
    assert [n for _, _, n in asked[:: len(names)]] == [*names, names[0]]
    failed = [record for record in records if record["error"]]
    assert {record["name"] for record in failed} == {"fastv 0.2"}
    assert "Skipped broken.png: " in result.err
    assert "6 questions about" in result.out
    assert "Skipped: 1 of the pictures." in result.out
    assert "[1] keep=0.2 cannot be met" in result.out
    row = next(line.split() for line in result.out.splitlines() if line.strip().startswith("tops 0.5"))
    own = [record for record in records if record["name"] == "tops 0.5"]
    assert row[2] == f"{1e3 * statistics.median(record['first_token'] for record in own):.1f}"
    assert row[6] == f"{statistics.fmean(record['layer_average'] for record in own):.1f}"
    assert row[7] == f"{100 * statistics.fmean(record['fidelity']['agrees'] for record in own):.1f}"
    # The interval "low to high" of agreement is three words.
    assert row[11] == f"{statistics.fmean(record['fidelity']['loss_increase'] for record in own):.3f}"
    with Image.open(plot) as drawn:
        assert drawn.width > 1000


def test_a_file_is_continued_with_what_is_missing_only(
    tops: Tops, llava_folder: Path, folder: Path, prompts: Path, tmp_path: Path, picture: Picture
) -> None:
    results = tmp_path / "results.jsonl"
    arguments = ["compare", folder, "--prompts", prompts, *options(llava_folder, results, "--methods", "random")]
    assert tops(*arguments).code == 0
    whole = results.read_bytes()
    first = whole.splitlines(keepends=True)

    assert tops(*arguments).code == 0
    assert results.read_bytes() == whole, "nothing was missing"

    # Killed in the middle of a question and of a line.
    results.write_bytes(b"".join(first[:4]) + first[4][:40])
    again = tops(*arguments)
    assert again.code == 0
    continued = results.read_bytes()
    assert continued.startswith(b"".join(first[:4]))
    keys = [(record["picture"], record["prompt"], record["name"]) for record in lines(results)[1:]]
    assert len(keys) == len(set(keys)) == len(first) - 1

    # More methods, and a picture that is another one now: only these are asked.
    picture(60, 50, 9).save(folder / "b.png")
    assert tops(*arguments[:-1], "random,divprune").code == 0
    new = lines(results)[len(first) :]
    assert [record["name"] for record in new if record["picture"] != "b.png"] == ["divprune 0.222"] * 4
    assert len([record for record in new if record["picture"] == "b.png"]) == 6


def test_a_results_file_of_another_run_is_refused_and_left_alone(
    tops: Tops, llava_folder: Path, folder: Path, prompts: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results.jsonl"
    arguments = ["compare", folder, "--prompts", prompts, *options(llava_folder, results)]
    assert tops(*arguments).code == 0
    before = results.read_bytes()
    prompts.write_text("Another question?\n")
    result = tops(*arguments, "--temperature", 0.5, "--seed", 1)
    assert result.code == 1
    assert "holds the results of another run (different: generation, prompts)" in result.err
    assert results.read_bytes() == before

    for content in ("a diary, not a results file\n", "no newline", '{"format": "something else"}\n', "\n"):
        results.write_text(content)
        result = tops(*arguments)
        assert result.code == 1
        assert "is not a results file of this command; name another file." in result.err
        assert results.read_text() == content

    results.write_bytes(before.splitlines(keepends=True)[0] + b"damaged\n")
    prompts.write_text("\n".join(PROMPTS))
    assert "Line 2 of " in tops(*arguments).err


def test_folders_and_prompts_with_nothing_in_them_are_one_clear_error(
    tops: Tops, llava_folder: Path, folder: Path, prompts: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9\xe8")
    cases: list[tuple[list[object], str]] = [
        ([empty, "--prompts", prompts], f"There are no pictures in {empty}"),
        ([folder, "--prompts", tmp_path / "blank.txt"], "blank.txt is empty; write one question a line."),
        ([folder, "--prompts", tmp_path / "latin.txt"], "latin.txt is not UTF-8 text."),
        ([folder, "--prompts", tmp_path / "none.txt"], "none.txt cannot be read"),
        ([folder], "Give either one question"),
        ([folder, "What?", "--prompts", prompts], "Give either one question"),
        ([folder, "What?", "--map", tmp_path / "map.png"], "--map and --card draw one picture"),
        ([folder, "What?", "--temperature", 1], "differ by chance"),
    ]
    for arguments, message in cases:
        result = tops("compare", *arguments, "--model", llava_folder, "--device", "cpu")
        assert result.code == 1
        assert message in result.err
        assert result.err.count("\n") == 1


def test_a_folder_of_broken_pictures_says_so(tops: Tops, llava_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"broken")
    result = tops("compare", tmp_path, "What?", "--model", llava_folder, "--device", "cpu")
    assert result.code == 1
    assert "Skipped x.png" in result.err
    assert "None of the pictures in" in result.err


def test_a_question_about_a_folder_needs_no_file(llava_engine: Engine, folder: Path) -> None:
    data = DataSet.read(folder, None, "What?")
    result = compare_folder(llava_engine, data, [Pruning(keep=1.0)], Generation(max_tokens=2))
    assert list(result.skipped) == ["broken.png"]
    same = result.summaries[1]
    assert same.num_answers == 3
    assert same.agreement is not None
    assert same.agreement.value == 100.0
    assert same.loss_increase is not None
    assert same.loss_increase.value == pytest.approx(0.0, abs=1e-5)
    with pytest.raises(InvalidInput, match="There is no folder"):
        DataSet.read(folder / "nowhere", None, "What?")


def test_questions_are_split_by_what_a_smaller_picture_answers(
    tops: Tops, llava_engine: Engine, llava_folder: Path, folder: Path, tmp_path: Path
) -> None:
    """Without --methods a smaller picture is asked, too: of this model enlarged again, since it has one size."""
    results = tmp_path / "results.jsonl"
    result = tops("compare", folder, "What?", *options(llava_folder, results, "--keep", "0.5"))
    assert result.code == 0, result.err
    assert "Questions that a smaller picture answers" in result.out
    _, *records = lines(results)
    agrees = {name: [one["fidelity"]["agrees"] for one in records if one["name"] == name] for name in ("tops 0.5",)}
    easy = [one["fidelity"]["agrees"] for one in records if one["name"] == "resize:enlarge=true 0.5"]
    data = DataSet.read(folder, None, "What?")
    prunings = [Pruning(keep=0.5), Pruning(method="resize", keep=0.5, enlarge=True)]
    compared = compare_folder(llava_engine, data, prunings, Generation(max_tokens=3))
    unpruned, of_tops, _ = compared.halves
    assert [one.questions if one else 0 for one in (unpruned.easy, unpruned.hard)] == [sum(easy), 3 - sum(easy)]
    for half, is_easy in ((of_tops.easy, True), (of_tops.hard, False)):
        values = [one for one, answered in zip(agrees["tops 0.5"], easy, strict=True) if answered == is_easy]
        assert (half.percent if half else None) == (pytest.approx(100 * statistics.fmean(values)) if values else None)


# The other signal is tried on the other command that writes a journal.
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.full)])
def test_a_stopped_run_continues(
    tops: Tops, llava_folder: Path, folder: Path, prompts: Path, tmp_path: Path, how: signal.Signals
) -> None:
    for number in range(12):
        shutil.copy(folder / "b.png", folder / f"copy{number}.png")
    results = tmp_path / "results.jsonl"
    arguments = ["compare", folder, "--prompts", prompts, *options(llava_folder, results, "--methods", "tops,random")]
    with running_until(arguments, results, 4) as process:
        os.kill(process.pid, how)
        _, errors = process.communicate(timeout=30)
    stopped = results.read_bytes()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert b"the same command continues" in errors
        assert b"Traceback" not in errors

    result = tops(*arguments)
    assert result.code == 0, result.err
    assert results.read_bytes().startswith(stopped[: stopped.rindex(b"\n") + 1])
    records = lines(results)[1:]
    keys = {(record["picture"], record["prompt"], record["name"]) for record in records}
    assert len(records) == len(keys) == 15 * 2 * 3
