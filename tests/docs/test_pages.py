"""What README and docs show runs, on the embedded model, and what they link to is there."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import tops_engine.mini
from tops_engine.methods import METHODS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SAMPLE = Path(tops_engine.mini.__file__).with_name("sample.jpg")


def python_snippets(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_langchain_snippets_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    snippets = python_snippets((DOCS / "langchain.md").read_text(encoding="utf-8"))
    in_readme = (ROOT / "README.md").read_text(encoding="utf-8").split("## LangChain\n")[1].split("\n## ")[0]
    assert python_snippets(in_readme) == snippets[:1]
    assert len(snippets) == 2
    shutil.copy(SAMPLE, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "readme"}
    for snippet in snippets:
        exec(snippet, names)
    printed = capsys.readouterr().out
    assert printed.startswith("5 {'cache_read': 0, 'image': 144, 'image_kept': 144, 'image_layer_average': 144}\n")
    assert "digit=" in printed
    assert "'name': 'look_again'" in printed
    assert names["answers"][1].text.startswith("Hello!")


def test_the_table_of_methods_is_complete_and_names_their_sources() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", (DOCS / "pruning.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    table = dict(rows)
    assert table.keys() == METHODS.keys()
    for name, source in table.items():
        paper = re.search(r"arXiv [\d.]+", METHODS[name].source)
        assert source.endswith(paper[0] if paper else METHODS[name].source), name
