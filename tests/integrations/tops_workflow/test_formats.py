"""Reading workflow files."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin
from tops_workflow.formats import InvalidWorkflow, parse_workflow, read_workflow

from tests.integrations.tops_workflow.test_runner import node

GRAPH: Any = {"nodes": [], "links": []}
PROMPT = {"1": node("Number", value=1)}


@pytest.mark.parametrize(
    ("data", "is_graph"), [(GRAPH, True), (PROMPT, False), ({"prompt": PROMPT, "client_id": "x"}, False)]
)
def test_both_formats_are_told_apart(tmp_path: Path, data: Any, is_graph: bool) -> None:
    path = tmp_path / "flow.json"
    path.write_text(json.dumps(data))
    found = read_workflow(path)
    assert (found.graph is not None, found.prompt is None) == (is_graph, is_graph)
    assert found.prompt in (None, PROMPT)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "flow.json").write_bytes(json.dumps(PROMPT).encode(encoding))
    assert read_workflow(tmp_path / "flow.json").prompt == PROMPT
    assert parse_workflow("\ufeff" + json.dumps(PROMPT), "text").prompt == PROMPT


def test_a_picture_gives_back_the_workflow_it_carries(tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("prompt", json.dumps(PROMPT))
    chunks.add_text("workflow", json.dumps(GRAPH))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=chunks)
    found = read_workflow(tmp_path / "a.png")
    assert (found.graph, found.prompt) == (GRAPH, PROMPT)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.json", b"{", "not valid JSON"),
        ("a.json", b"[1]", "neither"),
        ("a.json", b"{}", "neither"),
        ("a.json", b'{"a": 1}', "neither"),
        ("a.json", b"\xff\xfe\x00", "is no workflow"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("a.png", b"no picture", "not a readable PNG"),
    ],
)
def test_other_files_are_refused_in_a_sentence(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidWorkflow, match=text):
        read_workflow(tmp_path / name)


def test_pictures_without_a_workflow_and_missing_files_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(InvalidWorkflow, match="contains no workflow"):
        read_workflow(tmp_path / "plain.png")
    with pytest.raises(InvalidWorkflow, match="cannot be read"):
        read_workflow(tmp_path / "none.json")


def test_parsing_names_the_source() -> None:
    with pytest.raises(InvalidWorkflow, match="the clipboard"):
        parse_workflow("nonsense", "the clipboard")
