"""Links of README and docs lead somewhere, and the tables name what the registries hold."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import nodes
import tops_engine.mini
from tests.docs.blocks import PAGES, ROOT, blocks_of
from tops_engine.cli import load_commands
from tops_engine.cli.app import COMMANDS
from tops_engine.engine import shared_engine
from tops_engine.methods import METHODS
from tops_engine.settings import ModelSpec
from tops_engine.supported_models import ModelType, model_types

DOCS = ROOT / "docs"
SAMPLE = Path(tops_engine.mini.__file__).with_name("sample.jpg")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


PROJECT_FILES = [ROOT / name for name in ("CHANGELOG.md", "CODE_OF_CONDUCT.md", "SECURITY.md", "benchmarks/NOTES.md")]


@pytest.mark.parametrize("page", [*PAGES, *PROJECT_FILES], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    for link, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def test_readme_is_short_and_begins_with_picture_speed_and_the_ways_in() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 180
    order = [
        next(number for number, line in enumerate(lines) if line.startswith(start))
        for start in ("![", "| measured on", "### ComfyUI", "### LangChain", "### Command line")
    ]
    assert order == sorted(order)


def test_readme_names_every_method() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("**Methods**")[1].split("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", text)) == METHODS.keys() - {"none"}


@pytest.mark.parametrize("row", model_types(), ids=lambda row: row.model_type)
def test_the_table_of_models_has_every_model_type(row: ModelType) -> None:
    named = re.findall(r"`([^`]+)`", (DOCS / "models.md").read_text(encoding="utf-8"))  # `-13b-hf` is short for a size
    assert [name for name in row.checkpoints if name in named or name.endswith(tuple(n for n in named if n[0] == "-"))]


def test_the_table_of_nodes_is_complete() -> None:
    section = (DOCS / "comfyui.md").read_text(encoding="utf-8").split("## Nodes")[1].split("\n## ")[0]
    titles = re.findall(r"^\| (TOPS [^|]+?) \|", section, flags=re.MULTILINE)
    assert sorted(titles) == sorted(nodes.NODE_DISPLAY_NAME_MAPPINGS.values())


def test_the_table_of_commands_is_complete() -> None:
    load_commands()
    table = re.findall(r"^\| `tops ([\w-]+)` \|", (DOCS / "cli.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(table) == list(COMMANDS)


def test_the_langchain_blocks_print_what_they_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Other pages asked the same engine, and the printed counts are those of a new one.
    shared_engine(ModelSpec(model="mini")).forget()
    blocks = [block.text for block in blocks_of(DOCS / "langchain.md") if block.language == "python"]
    (in_readme,) = [block.text for block in blocks_of(ROOT / "README.md") if "ChatTOPSLlava" in block.text]
    assert in_readme == blocks[0]
    shutil.copy(SAMPLE, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks[:2]:
        exec(block, names)
    printed = capsys.readouterr().out
    assert printed.startswith("5 {'cache_read': 0, 'image': 144, 'image_kept': 144, 'image_layer_average': 144}\n")
    assert "digit=" in printed
    assert "'name': 'look_again'" in printed
    assert names["answers"][1].text.startswith("Hello!")
