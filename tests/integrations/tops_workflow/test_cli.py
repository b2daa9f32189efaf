"""`tops workflow` on a workflow of our nodes and mini."""

import json
from pathlib import Path

import pytest
from tops_workflow.formats import read_workflow

from tests.conftest import Picture, Tops
from tests.integrations.tops_workflow.test_runner import node

ROOT = Path(__file__).parents[3]

ASK = {
    "1": node("LoadImage", image="tops_photo.jpg"),
    "2": node("TOPSLoadModel", model="mini", dtype="float32", device="cpu", quantization="none", attention="sdpa"),
    "4": node(
        "TOPSAsk",
        prompt="What number is written?",
        max_tokens=8,
        temperature=0.0,
        seed=0,
        model=["2", 0],
        image=["1", 0],
    ),
    "5": node("SaveImage", images=["4", 1], filename_prefix="map"),
    "6": node("PreviewAny", source=["4", 0]),
}  # fmt: skip


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    path = tmp_path / "ask.json"
    path.write_text(json.dumps(ASK))
    return path


def test_run_shows_the_answer_and_where_the_picture_lies(tops: Tops, flow: Path, tmp_path: Path) -> None:
    result = tops("workflow", "run", flow, "--folder", tmp_path)
    assert result.code == 0
    picture = tmp_path / "output" / "map_00001_.png"
    assert str(picture) in result.out
    assert "PreviewAny (6)" in result.out
    assert read_workflow(picture).prompt is not None, "the picture carries its workflow"
    shown = json.loads(tops("workflow", "run", picture, "--folder", tmp_path, "--json").out)
    assert shown["6"]["text"] == shown["4"]["text"]


def test_set_changes_widgets_and_brings_a_picture_along(
    tops: Tops, flow: Path, tmp_path: Path, picture: Picture
) -> None:
    (tmp_path / "elsewhere").mkdir()
    picture(40, 40).save(tmp_path / "elsewhere" / "mine.png")
    result = tops(
        "workflow", "run", flow, "--folder", tmp_path, "--set", f"1.image={tmp_path / 'elsewhere' / 'mine.png'}",
        "--set", "TOPSAsk.max_tokens=1", "--json",
    )  # fmt: skip
    assert result.code == 0
    assert (tmp_path / "input" / "mine.png").is_file()


@pytest.mark.parametrize(
    "seed", [-1, 2**32 + 1, 2**64 - 1, 18446744073709552000]
)  # the last one: 2**64 - 1 of a browser
def test_seeds_of_comfyui_and_of_old_graphs_run(tops: Tops, flow: Path, tmp_path: Path, seed: int) -> None:
    changes = ("--set", f"TOPSAsk.seed={seed}", "--set", "TOPSAsk.temperature=1")
    result = tops("workflow", "run", flow, "--folder", tmp_path, *changes, "--json")
    assert result.code == 0, result.err


@pytest.mark.parametrize("name", ["label", "group", "mark"])
def test_decorations_and_a_byte_order_mark_do_not_end_a_run(tops: Tops, tmp_path: Path, name: str) -> None:
    graph = json.loads((ROOT / "workflows" / "ask_about_an_image.json").read_text(encoding="utf-8"))
    kinds = {"label": "Label (rgthree)", "group": "workflow>My group"}
    if name in kinds:
        graph["nodes"].append({"id": 41, "type": kinds[name], "inputs": [], "outputs": [], "widgets_values": []})
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(graph), encoding="utf-8-sig" if name == "mark" else "utf-8")
    result = tops("workflow", "run", path, "--folder", tmp_path, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["5"]["text"] == ["5"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("4.max_tokens=many", "takes a whole number"),
        ("4.size=3", "has no widget 'size'"),
        ("Ask.prompt=x", "There is no node 'Ask'"),
        ("nothing", "not of the form"),
        ("4.max_tokens=0", "smaller than min"),
        ("1.image=none.png", "none.png"),
    ],
)
def test_wrong_changes_are_one_clear_error(tops: Tops, flow: Path, tmp_path: Path, change: str, text: str) -> None:
    result = tops("workflow", "run", flow, "--folder", tmp_path, "--set", change)
    assert result.code == 1
    assert text in result.err


def test_check_lists_every_problem_and_convert_goes_both_ways(tops: Tops, flow: Path, tmp_path: Path) -> None:
    assert "is fine" in tops("workflow", "check", flow, "--folder", tmp_path).out
    assert tops("workflow", "convert", flow, tmp_path / "graph.json").code == 0
    graph = json.loads((tmp_path / "graph.json").read_text())
    assert tops("workflow", "convert", tmp_path / "graph.json", tmp_path / "again.json").code == 0
    again = json.loads((tmp_path / "again.json").read_text())
    for node_id, entry in ASK.items():
        assert entry["inputs"].items() <= again[node_id]["inputs"].items()
    by_kind = {entry["type"]: entry for entry in graph["nodes"]}
    by_kind["TOPSAsk"]["widgets_values"][1] = -5
    by_kind["TOPSLoadModel"]["widgets_values"] += ["from", "the", "future"]
    graph["nodes"].append({"id": 99, "type": "KSampler", "properties": {"cnr_id": "comfy-core"}, "inputs": []})
    graph["nodes"].append({"id": 98, "type": "Fancy", "properties": {"cnr_id": "fancy-pack"}, "inputs": []})
    num_values = len(by_kind["TOPSLoadModel"]["widgets_values"])
    (tmp_path / "bad.json").write_text(json.dumps(graph))
    result = tops("workflow", "check", tmp_path / "bad.json", "--folder", tmp_path)
    assert result.code == 1
    for text in (
        "node 99 (KSampler): unknown here; it needs ComfyUI",
        "node 98 (Fancy): unknown here; it needs ComfyUI and the pack fancy-pack",
        f"node 2 (TOPSLoadModel): {num_values} widget values for {num_values - 3} widgets",
        "smaller than min",
    ):
        assert text in result.out.replace("\n", " ")


def test_check_writes_nothing_and_knows_the_samples(tops: Tops, flow: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    assert "is fine" in tops("workflow", "check", flow, "--folder", folder).out
    assert not folder.exists()
    other = {**ASK, "1": node("LoadImage", image="tops_photo.jpg"), "7": node("LoadImage", image="mine.jpg")}
    other["8"] = node("SaveImage", images=["7", 0], filename_prefix="mine")
    flow.write_text(json.dumps(other))
    result = tops("workflow", "check", flow, "--folder", folder)
    assert result.code == 1
    assert "has 1 problem" in result.err
    assert "node 7 (LoadImage)" in result.out
    assert not folder.exists()


def test_files_go_to_the_folder_of_studio_by_default(
    tops: Tops, flow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert tops("workflow", "run", flow, "--set", "4.max_tokens=1").code == 0
    assert (tmp_path / "home" / "tops-studio" / "output" / "map_00001_.png").is_file()
    assert not list(here.iterdir())


def test_what_is_no_workflow_is_refused(tops: Tops, tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("[]")
    for command in (["run", "no.json"], ["check", "no.json"], ["convert", "no.json", "out.json"]):
        paths = [str(tmp_path / part) if part.endswith(".json") else part for part in command]
        result = tops("workflow", *paths)
        assert result.code == 1
        assert "neither a saved workflow" in result.err
