"""The documentation site builds without a warning and loads nothing from other servers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.site_hooks import method_classes, relinked
from tops_engine.methods import METHODS

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://example.org/project"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="needs pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_no_page_loads_anything_from_another_server(site: Path) -> None:
    loads = re.compile(
        r"<(?:script|img|iframe|source)[^>]+src=\"?(https?:[^\s\">]+)|<link[^>]+stylesheet[^>]+(https?:[^\s\">]+)"
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert [(page.name, loads.findall(page.read_text())) for page in pages if loads.search(page.read_text())] == []


def test_the_api_reference_holds_options_with_descriptions_and_bounds(site: Path) -> None:
    settings = (site / "api" / "settings" / "index.html").read_text()
    assert "The largest number of tokens to write. Allowed: at least 1." in settings
    methods = (site / "api" / "methods" / "index.html").read_text()
    assert "Weight of semantic diversity. Allowed: at least 0, at most 10." in methods
    assert "ChatTOPSLlava" in (site / "api" / "langchain" / "index.html").read_text()


def test_descriptions_are_shown_as_descriptions_and_types_come_from_annotations(site: Path) -> None:
    engine = (site / "api" / "index.html").read_text()
    assert {"tops_engine.Engine.chat", "tops_engine.RemoteEngine.batch"} <= set(re.findall(r'id="([\w.]+)"', engine))
    assert ":class:" not in engine
    assert ":meth:" not in engine
    rows = [re.sub(r"<[^>]+>|\s+", " ", row).split() for row in re.findall(r"<tr.*?</tr>", engine, flags=re.DOTALL)]
    assert ["spec", "ModelSpec", "which", "checkpoint"] in [row[:4] for row in rows]


def test_the_api_reference_lists_every_method() -> None:
    assert sorted(f"{kind.__module__}.{kind.__name__}" for kind in METHODS.values()) == sorted(method_classes())


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("README.md", "docs/serving.md#clients", "serving.md#clients"),
        ("README.md", "docs/demo.png", "demo.png"),
        ("README.md", "LICENSE", f"{REPOSITORY}/blob/main/LICENSE"),
        ("docs/accuracy.md", "../tops_engine/mini/weights/README.md", "mini.md"),
        ("docs/api/methods.md", "../../CONTRIBUTING.md#add-a-node", "../contributing.md#add-a-node"),
        ("docs/accuracy.md", "methods.md", "methods.md"),
        ("docs/accuracy.md", "https://arxiv.org/abs/1", "https://arxiv.org/abs/1"),
    ],
)
def test_links_lead_to_pages_of_the_site_or_to_the_repository(source: str, link: str, expected: str) -> None:
    assert relinked(f"[text]({link})", source, REPOSITORY) == f"[text]({expected})"


def test_a_link_to_nothing_ends_the_build() -> None:
    with pytest.raises(FileNotFoundError, match=r"README.md links to docs/nothing.md"):
        relinked("[text](docs/nothing.md)", "README.md", REPOSITORY)
