"""Every Python and shell block of README and docs runs, or says why not.

The blocks of a page run in order in one folder that holds the files they name. Published checkpoints are replaced by
small random ones of the same layout, servers by one in this process. Commands that install, download or run tests are
checked instead: the extras, targets and files that they name have to exist.
"""

import re
import runpy
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.main import get_group

import tops_engine.mini
from tests.conftest import Tops
from tests.docs.blocks import PAGES, ROOT, Block, Command, blocks_of, commands_of
from tests.support.chat_server import ChatServer
from tests.support.checkpoints_video import save_onevision
from tests.support.clips import clip
from tests.support.short_verify import shorten
from tops_engine.cli import load_commands
from tops_engine.cli.app import app
from tops_engine.engine import shared_engine
from tops_engine.methods import METHODS
from tops_engine.mini.scenes import generate
from tops_engine.settings import ModelSpec, Pruning

SAMPLE = Path(tops_engine.mini.__file__).with_name("sample.jpg")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: A reason has to begin with one of these; a block that can run has to run.
REASONS = (
    "needs vLLM",
    "needs lmms-eval",
    "needs an NVIDIA GPU",
    "needs a running ComfyUI",
    "serves a page",
    "takes longer than all tests",
)

#: Their commands take about as long as those of all other pages; tests of tops_engine.comparison and tops_engine.bench
#: run the same functions.
LONG = ("docs/accuracy.md", "docs/comparing.md", "docs/methods-on-mini.md")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


WITH_BLOCKS = [
    pytest.param(page, marks=pytest.mark.full) if name_of(page) in LONG else page
    for page in PAGES
    if any(block.language in ("python", "bash") for block in blocks_of(page))
]


@pytest.fixture(scope="module")
def onevision_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_onevision(tmp_path_factory.mktemp("onevision"))


@pytest.fixture
def server() -> Iterator[ChatServer]:
    engine = shared_engine(ModelSpec(model="mini", device="cpu"))
    with ChatServer(engine, Pruning(keep=0.5, stages="first")).running() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a reader of the pages would be, with the files that they name."""
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        shutil.copy(SAMPLE, tmp_path / name)
    for name in ("photos", "folder"):
        (tmp_path / name).mkdir()
        for seed in (3, 4):
            generate(seed, "test").image.save(tmp_path / name / f"scene-{seed}.png")
    (tmp_path / "receipts").mkdir()
    for number in range(8):
        Image.new("RGB", (168, 168), (30 * number, 90, 120)).save(tmp_path / "receipts" / f"{number}.png")
    for name in ("prompts.txt", "questions.txt"):
        (tmp_path / name).write_text("What number is written?\n")
    schema = '{"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}'
    (tmp_path / "schema.json").write_text(schema)
    (tmp_path / "clip.mp4").write_bytes(clip(20))
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "first.mp4").write_bytes(clip(6))
    (tmp_path / "ComfyUI" / "custom_nodes").mkdir(parents=True)
    for name in ("workflows", "docs"):
        (tmp_path / name).symlink_to(ROOT / name, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TOPS_MODEL", "mini")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


class Reader:
    """Runs the blocks of one page."""

    def __init__(self, replace: Callable[[str], str], tops: Tops, monkeypatch: pytest.MonkeyPatch) -> None:
        self.replace, self.tops, self.monkeypatch = replace, tops, monkeypatch
        self.names: dict[str, Any] = {"__name__": "page"}

    def run(self, block: Block) -> None:
        """Run a block; an error names its line."""
        block = block._replace(text=self.replace(block.text))
        if block.language == "python":
            # Compiled so that an error shows the line of the page.
            exec(compile("\n" * block.line + block.text, block.page, "exec"), self.names)
            return
        for command in commands_of(block):
            with self.monkeypatch.context() as patch:
                for name, value in command.variables.items():
                    patch.setenv(name, value)
                self.run_command(command, block)

    def run_command(self, command: Command, block: Block) -> None:
        words = [command.words[0].removeprefix(".venv/bin/"), *command.words[1:]]
        if words[0] == "tops":
            result = self.tops(*words[1:])
            assert result.code == 0, f"{block}: {' '.join(words)}\n{result.out}{result.err}"
        elif words[0] == "python" and words[1].endswith(".py"):
            runpy.run_path(words[1])["main"](words[2:])
        elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
            self.monkeypatch.setattr(sys, "argv", words[2:])
            runpy.run_module(words[2], run_name="__main__")
        else:
            check_set_up(words, block)


def check_set_up(words: list[str], block: Block) -> None:
    """Check a command that installs, downloads or works on the checkout: what it names has to exist."""
    match words:
        case ["pytest", *paths]:
            assert paths, f"{block}: no tests"
            assert all((ROOT / path).exists() for path in paths), f"{block}: {paths}"
        case ["python", "-m", module]:
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"{block}: {module}"
        case ["pip", "install", "pre-commit"] | ["pre-commit", "install"]:
            pass
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), f"{block}: {target}"
        case ["git", "clone", address, *_]:
            assert address == PROJECT["urls"]["Repository"], f"{block}: {address}"
        case ["cd", *_]:
            pass
        case ["pip", "install", "-r", path]:
            assert (ROOT / path.removeprefix("tops-engine/")).is_file(), f"{block}: {path}"
        case ["pip", "install", what]:
            name, _, extras = what.removesuffix("]").partition("[")
            assert name in (".", PROJECT["name"]), f"{block}: {what}"
            assert set(filter(None, extras.split(","))) <= set(PROJECT["optional-dependencies"]), f"{block}: {what}"
        case _:
            raise AssertionError(f"{block}: no test knows how to run {' '.join(words)!r}")


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_the_blocks_of_a_page_run(
    page: Path,
    folder: Path,
    tops: Tops,
    server: ChatServer,
    llava_folder: Path,
    onevision_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replacements = {
        "llava-hf/llava-1.5-7b-hf": str(llava_folder),
        "llava-hf/llava-onevision-qwen2-7b-ov-hf": str(onevision_folder),
        "http://host:8000/v1": server.url,
        "http://host:8000": server.url.removesuffix("/v1"),
        "http://localhost:8000": server.url.removesuffix("/v1"),
    }

    def replace(text: str) -> str:
        for published, here in replacements.items():
            text = text.replace(published, here)
        # The same commands with less to do.
        text = re.sub(r"--scenes \d+", "--scenes 1", text).replace("--methods all", "--methods tops,random")
        # Random weights never end an answer.
        return text.replace("tops compare ", "tops compare --max-tokens 16 ")

    shorten(monkeypatch)
    torch.manual_seed(0)
    reader = Reader(replace, tops, monkeypatch)
    for block in blocks_of(page):
        if block.language in ("python", "bash") and block.reason is None:
            reader.run(block)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_options_of_every_command_exist(page: Path) -> None:
    """Parse the commands of a page, also of pages that only ``make test-full`` runs."""
    load_commands()
    known = get_group(app).commands
    blocks = [block for block in blocks_of(page) if block.language == "bash" and block.reason is None]
    for block in blocks:
        for command in commands_of(block):
            program, *words = command.words
            if program.removeprefix(".venv/bin/") == "tops":
                known[words[0]].make_context(words[0], words[1:])


@pytest.fixture(autouse=True)
def _no_method_of_a_page_stays() -> Iterator[None]:
    names = set(METHODS)
    yield
    for name in set(METHODS) - names:
        METHODS.remove(name)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is_and_every_exception_why(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = blocks_of(page)
    assert text.count("\n```") == 2 * len(blocks), "a fence is not closed, or a comment is not directly above it"
    assert {block.language for block in blocks} <= {"python", "bash", "text", "json"}
    assert [str(block) for block in blocks if block.reason and not block.reason.startswith(REASONS)] == []
    assert text.count("\n<!-- not executed") == sum(block.reason is not None for block in blocks)
    indented = re.findall(r"\n\n {4}(?! *[-*\d])\S.*", re.sub(r"```.*?```", "", text, flags=re.S))
    assert indented == [], "code belongs between fences"
