"""The examples of the chat model, run on mini."""

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.chat_server import ChatServer
from tests.support.checkpoints_video import save_onevision
from tests.support.clips import clip
from tops_engine.engine import shared_engine
from tops_engine.errors import InvalidInput
from tops_engine.mini.scenes import generate
from tops_engine.settings import ModelSpec, Pruning

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "langchain"


def run(name: str, *arguments: Any) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes 3 to 8 of mini's test split."""
    target = tmp_path_factory.mktemp("scenes")
    for seed in range(3, 9):
        generate(seed, "test").image.save(target / f"scene-{seed}.png")
    return target


def test_the_chain_answers_each_question(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("vqa_chain", folder / "scene-3.png", "What number is written?", "Which word is written?", "--keep", 1.0)
    assert capsys.readouterr().out == "What number is written? 6\nWhich word is written? MOP\n"


def test_the_chain_asks_a_server(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = shared_engine(ModelSpec(model="mini", device="cpu"))
    with ChatServer(engine, Pruning(method="none", keep=1.0)).running() as server:
        run("vqa_chain", folder / "scene-3.png", "What number is written?", "--server", server.url)
        assert len(server.requests) == 1
    assert capsys.readouterr().out == "What number is written? 6\n"


def test_every_picture_gets_a_caption_and_a_broken_one_a_reason(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    run("caption_folder", tmp_path, "--batch-size", 4, "--keep", 0.5)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["picture"] for line in lines] == ["broken.jpg", *(f"scene-{seed}.png" for seed in range(3, 9))]
    assert "not a picture in a known format" in lines[0]["caption"]
    assert "word MOP" in lines[1]["caption"]


def test_the_agent_sees_more_after_its_look(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    halves = [Image.open(folder / f"scene-{seed}.png") for seed in (3, 4)]
    wide = Image.new("RGB", (halves[0].width * 2, halves[0].height))
    for index, half in enumerate(halves):
        wide.paste(half, (index * half.width, 0))
    wide.save(tmp_path / "wide.png")
    run("zoom_agent", tmp_path / "wide.png", "What number is written?", "--keep", 1.0)
    call, look, answer = capsys.readouterr().out.splitlines()
    assert call == "ai: zoom({'side': 'left'})"
    assert look == "tool: The left side: [picture]"
    assert answer == "ai: 6"


def test_the_right_picture_is_found_and_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("image_rag", folder, "cyan circle", "What number is written?", "--keep", 1.0)
    assert capsys.readouterr().out == "scene-3.png: 6\n"


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_the_agent_that_takes_screenshots_stays_within_its_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: list[Any] = ["--steps", 3, "--max-visual-tokens", 60]
    run("screen_agent", *options, "--plot", tmp_path / "steps.png")
    rows = [[int(cell) for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [[number, 36 * number] for number in range(4)]
    assert [row[2] for row in rows] == [0, 36, 60, 60]
    assert rows[-1][6] < rows[-1][5]  # the cache is smaller
    assert Image.open(tmp_path / "steps.png").width > 1000


@pytest.mark.full
def test_the_page_of_a_document_is_found_and_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("document_qa", folder, "What number is on the page with the word MOP?", "--keep-index", 1.0)
    assert capsys.readouterr().out.startswith("scene-3.png: ")


def test_a_closer_look_follows_where_cheap_looks_disagree(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = ["What number is written?", "Which word is written?"]
    run("cascade", folder / "scene-3.png", *questions, "--budgets", 0.02, 1.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines] == ["What number is written? 6", "Which word is written? MOP"]
    looks = [int(line.split("(")[1].split()[0]) for line in lines]
    assert set(looks) <= {2, 3}
    run("cascade", folder / "scene-3.png", questions[0], "--budgets", 1.0, 1.0)
    assert capsys.readouterr().out == "What number is written? 6 (2 looks, 288 visual tokens)\n"


@pytest.mark.full
def test_each_picture_becomes_an_invoice(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.png").write_bytes((folder / "scene-3.png").read_bytes())
    (tmp_path / "two.png").write_bytes(b"no picture")
    run("invoices", tmp_path, "--model", "mini")
    one, two = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert {"number", "seller", "items", "total", "adds_up"} <= one.keys()
    assert isinstance(one["total"], float)
    assert "not a picture" in two["error"]


@pytest.mark.full
def test_a_video_is_asked_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip())
    model = save_onevision(tmp_path / "model")
    run("video_question", path, "What happens?", "--model", model, "--frames", 4)
    assert " visual tokens, " in capsys.readouterr().out
    with pytest.raises(InvalidInput, match="mini takes no videos; give --model one that does"):
        run("video_question", path, "What happens?", "--model", "mini")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_every_cell_of_a_notebook_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") for cell in cells)
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(path), "exec"), names)
    assert capsys.readouterr().out
