"""The snippets of the README's LangChain section run, in order, on the embedded model."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import tops_engine.mini
from tops_engine.methods import METHODS

README = Path(__file__).parents[1] / "README.md"
SAMPLE = Path(tops_engine.mini.__file__).with_name("sample.jpg")


def test_the_langchain_snippets_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = README.read_text(encoding="utf-8").split("## LangChain\n")[1].split("\n## ")[0]
    snippets = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
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
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    table = dict(rows)
    assert table.keys() == METHODS.keys()
    for name, source in table.items():
        paper = re.search(r"arXiv [\d.]+", METHODS[name].source)
        assert source.endswith(paper[0] if paper else METHODS[name].source), name
