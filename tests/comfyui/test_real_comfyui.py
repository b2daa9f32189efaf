"""Test the pack in a real ComfyUI, over HTTP and websocket (skipped without COMFYUI_PATH)."""

import copy
import io
import json
import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tops_workflow.comfyui_client import ComfyUIClient
from tops_workflow.convert import graph_to_prompt
from tops_workflow.formats import InvalidWorkflow, Prompt, read_workflow
from tops_workflow.growing import single_inputs
from tops_workflow.host import Interrupted
from tops_workflow.registry import all_nodes

import nodes
import tops_engine.mini
from nodes.v1 import MOST_INPUTS
from tests.comfyui.conftest import Server
from tests.support.checkpoints import save_llava
from tests.workflows.test_shipped_workflows import ANSWERS, CURRENT, HERE_AT_ONCE
from tools.record_locales import LANGUAGES
from tools.record_subgraphs import BLUEPRINTS
from tops_engine.errors import TopsError

WEIGHTS = Path(tops_engine.mini.__file__).with_name("weights")
KEYS = (
    "output", "output_name", "output_is_list", "output_tooltips", "output_node", "display_name", "description",
    "category", "deprecated", "experimental", "search_aliases", "is_input_list",
)  # fmt: skip
ASK = next(path for path in CURRENT if path.stem == "ask_about_an_image")


def prompt_of(path: Path, comfyui: ComfyUIClient) -> Prompt:
    graph = read_workflow(path).graph
    assert graph is not None
    return graph_to_prompt(graph, comfyui.definitions())


@pytest.fixture
def ask(comfyui: ComfyUIClient) -> Prompt:
    return prompt_of(ASK, comfyui)


def test_it_starts_quickly_and_without_a_word_of_ours(server: Server) -> None:
    log = server.log.partition("To see the GUI")[0]
    found = re.search(r"([\d.]+) seconds: .*/tops-engine", log)
    assert found, log
    assert float(found[1]) < 2
    assert not re.search(r"IMPORT FAILED\W.*tops", log)
    assert not re.search(r"(?i)(warning|error).*tops", log)


def test_every_node_is_registered_as_defined(comfyui: ComfyUIClient) -> None:
    """Compare the whole definition: ComfyUI made it through V3 where it has that, and through V1 where not."""
    there, here = comfyui.definitions(), all_nodes().definitions()
    has_single_inputs = "images.image_4" in there["TOPSAsk"]["input"]["optional"]
    for node_id in nodes.NODE_CLASS_MAPPINGS:
        real, ours = there[node_id], here[node_id]
        for key in KEYS:
            assert real.get(key, ours[key]) == ours[key], (node_id, key)
        assert real["python_module"] == "custom_nodes.tops-engine"
        for group in ("required", "optional"):
            found, meant = real["input"].get(group, {}), ours["input"].get(group, {})
            if has_single_inputs:
                meant = single_inputs(meant, MOST_INPUTS)
            assert list(found) == list(meant) == real["input_order"].get(group, []), node_id
            for name, (kind, options) in meant.items():
                if isinstance(kind, list) and found[name][0] == "COMBO":
                    assert found[name][1]["options"][:1] == kind[:1], (node_id, name)
                else:
                    assert (found[name][0] if isinstance(kind, str) else []) == (kind if isinstance(kind, str) else [])
                assert {key: found[name][1].get(key) for key in options} == options, (node_id, name)


def test_the_core_loads_the_nodes_through_v3_where_it_has_it(comfyui: ComfyUIClient, server: Server) -> None:
    major, minor, _ = server.version.split(".")
    kind = comfyui.definitions()["TOPSPruning"]["input"]["required"]["method"][0]
    assert (kind == "COMBO") == ((int(major), int(minor)) >= (0, 20))


def test_checkpoints_in_the_default_model_folders_are_listed_and_run(
    comfyui: ComfyUIClient, ask: Prompt, server: Server
) -> None:
    """Use a default installation: no extra_model_paths.yaml, folders that the pack itself created."""
    for kind in ("TOPS", "LLM"):
        assert (server.base / "models" / kind).is_dir()
        shutil.copytree(WEIGHTS, server.base / "models" / kind / "copied")
    models = comfyui.definitions()["TOPSLoadModel"]["input"]["required"]["model"]
    models = models[1]["options"] if models[0] == "COMBO" else models[0]
    assert {"TOPS/copied", "LLM/copied"} <= set(models)
    changed = copy.deepcopy(ask)
    (loader,) = [node for node in changed.values() if node["class_type"] == "TOPSLoadModel"]
    loader["inputs"]["model"] = "LLM/copied"
    report = comfyui.run(changed, None, lambda kind, data: None)
    for node_id, text in ANSWERS[ASK.stem].items():
        assert report.ui[node_id]["text"] == text


#: Nodes of ComfyUI 0.29 that 0.20.1 lacks.
NEWER_NODES = {"SaveText"}


def test_the_embedded_core_nodes_are_the_real_ones(comfyui: ComfyUIClient) -> None:
    """Compare ids, inputs, types and outputs, so that one JSON runs in both."""
    there, here = comfyui.definitions(), all_nodes().definitions()
    own = {known for known in here if not known.startswith("TOPS")}
    assert own - set(there) <= NEWER_NODES
    for node_id in own & set(there):
        real, ours = inputs_of(there[node_id]), inputs_of(here[node_id])
        assert {name: real.get(name) for name in ours} == ours, node_id
        assert set(there[node_id]["input"].get("required", {})) <= set(ours), node_id
        # Versions differ in what is optional, but saved values of widgets are read by their order.
        widgets = [[name for name in inputs if inputs[name] in WIDGETS and name in ours] for inputs in (real, ours)]
        assert widgets[0] == widgets[1], node_id
        # Newer versions of ComfyUI appended outputs.
        shared = zip(there[node_id]["output"], here[node_id]["output"], strict=False)
        assert all(real == ours for real, ours in shared), node_id
        assert there[node_id]["output_node"] == here[node_id]["output_node"], node_id


WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def inputs_of(definition: Any) -> dict[str, str]:
    """Return the type of each input, required ones first."""
    inputs = {
        name: spec for part in ("required", "optional") for name, spec in definition["input"].get(part, {}).items()
    }
    return {name: "COMBO" if isinstance(spec[0], list) else spec[0] for name, spec in inputs.items()}


def test_templates_thumbnails_and_help_are_served(server: Server) -> None:
    templates = json.loads(server.get("/api/workflow_templates"))["tops-engine"]
    assert sorted(templates) == sorted(path.stem for path in CURRENT)
    for name in templates:
        assert json.loads(server.get(f"/api/workflow_templates/tops-engine/{name}.json"))["nodes"]
        assert server.get(f"/api/workflow_templates/tops-engine/{name}.jpg")[:2] == b"\xff\xd8"
    for node_id in nodes.NODE_CLASS_MAPPINGS:
        assert b"## Inputs" in server.get(f"/extensions/tops-engine/docs/{node_id}.md")


@pytest.mark.parametrize("path", HERE_AT_ONCE, ids=lambda path: path.stem)
def test_every_template_runs(path: Path, comfyui: ComfyUIClient, server: Server) -> None:
    heard: list[tuple[str, Any]] = []
    prompt = prompt_of(path, comfyui)
    report = comfyui.run(prompt, None, lambda kind, data: heard.append((kind, data)))
    for node_id, text in ANSWERS[path.stem].items():
        assert report.ui[node_id]["text"] == text
    kinds = {kind for kind, _ in heard}
    assert {"executing", "progress", "text", "executed"} <= kinds
    for picture in (one for shown in report.ui.values() for one in shown.get("images", [])):
        assert comfyui.view(picture)[:4] == b"\x89PNG"
    # The pack's own scenes are known however ComfyUI decodes them.
    assert not [note for shown in report.ui.values() for note in shown.get("notes", []) if "mini knows only" in note]


def test_equal_prompts_are_not_run_twice_and_a_new_question_does_not_load_again(
    comfyui: ComfyUIClient, ask: Prompt, server: Server
) -> None:
    comfyui.run(ask)
    loaded = server.log.count("Loading weights")
    assert set(comfyui.run(ask).cached) == set(ask)
    other = copy.deepcopy(ask)
    other["4"]["inputs"]["prompt"] = "What colour is the circle?"
    other["3"]["inputs"]["keep"] = 0.5
    report = comfyui.run(other)
    assert report.ui["5"]["text"] == ["blue"]
    assert "1" in report.cached
    assert server.log.count("Loading weights") == loaded


def test_two_loaders_and_three_questions_share_one_model(comfyui: ComfyUIClient, ask: Prompt, server: Server) -> None:
    settings = ask["1"]["inputs"] | {"dtype": "bfloat16"}  # a model that is not loaded yet
    prompt: Prompt = {
        "1": {"class_type": "TOPSLoadModel", "inputs": settings},
        "2": {"class_type": "TOPSLoadModel", "inputs": dict(settings)},
    }
    for number, (loader, question) in enumerate((("1", "Hello"), ("2", "Hi"), ("1", "Good day")), 3):
        inputs: dict[str, Any] = {
            "model": [loader, 0],
            "prompt": question,
            "max_tokens": 4,
            "temperature": 0.0,
            "seed": 0,
        }
        prompt[str(number)] = {"class_type": "TOPSAsk", "inputs": inputs}
    before = server.times_loaded
    assert set(comfyui.run(prompt).ui) == {"3", "4", "5"}
    assert server.times_loaded == before + 1


def test_an_interruption_ends_the_run_at_once_and_nothing_half_is_kept(comfyui: ComfyUIClient, ask: Prompt) -> None:
    prompt: Prompt = {node_id: ask[node_id] for node_id in ("1", "2")}
    inputs: dict[str, Any] = {
        "model": ["1", 0],
        "image": ["2", 0],
        "prompt": "Describe the picture.",
        "methods": "tops",
    }
    inputs |= {"keep": "0.222", "repeats": 100, "max_tokens": 64}
    prompt["3"] = {"class_type": "TOPSCompare", "inputs": inputs}
    stopped: list[float] = []

    def stop(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and not stopped:
            stopped.append(time.monotonic())
            threading.Thread(target=comfyui.interrupt).start()

    with pytest.raises(Interrupted):
        comfyui.run(prompt, None, stop)
    assert time.monotonic() - stopped[0] < 5
    prompt["3"]["inputs"]["repeats"] = 1
    assert "3" not in comfyui.run(prompt).cached


@pytest.fixture(scope="module")
def slow_model(server: Server) -> str:
    """A model that reads a long prompt for several seconds on a CPU."""
    sizes: dict[str, Any] = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 24,
        "max_position_embeddings": 8192,
    }
    save_llava(server.base / "models" / "TOPS" / "slow", **sizes, num_attention_heads=8, num_key_value_heads=8)
    return "TOPS/slow"


def test_stop_ends_the_reading_of_a_prompt_and_the_writing_of_an_answer(
    comfyui: ComfyUIClient, ask: Prompt, slow_model: str
) -> None:
    ask["1"]["inputs"]["model"] = slow_model
    ask["4"]["inputs"] |= {"prompt": "What number is written? " * 60, "max_tokens": 1}
    begun: list[float] = []
    comfyui.run(ask, None, lambda kind, data: begun.append(time.monotonic()) if kind == "text" else None)
    whole = time.monotonic() - begun[1]  # after "Loading …"

    def seconds_to_stop(prompt: str, wait: float, is_due: Callable[[str], bool]) -> float:
        ask["4"]["inputs"] |= {"prompt": prompt, "max_tokens": 2000}
        pressed: list[float] = []

        def press() -> None:
            time.sleep(wait)
            pressed.append(time.monotonic())
            comfyui.interrupt()

        thread = threading.Thread(target=press)

        def listen(kind: str, data: dict[str, Any]) -> None:
            if kind == "text" and is_due(data["text"]) and thread.ident is None:
                thread.start()

        with pytest.raises(Interrupted):
            comfyui.run(ask, None, listen)
        return time.monotonic() - pressed[0]

    reading = seconds_to_stop("Which colour is the star? " * 60, whole / 8, lambda text: text.startswith("Reading"))
    writing = seconds_to_stop("What?", 0.1, lambda text: not text.startswith(("Reading", "Loading")))
    print(f"the whole prompt {whole:.2f} s; stopped while it was read: {reading:.2f} s, while written: {writing:.2f} s")
    assert reading < whole / 2
    assert writing < whole / 2
    ask["1"]["inputs"]["model"] = "mini"
    ask["4"]["inputs"] |= {"prompt": "What number is written?", "max_tokens": 8}
    assert comfyui.run(ask).ui["5"]["text"] == ["5"]


def test_unload_models_gives_the_memory_back_and_the_next_run_works(
    comfyui: ComfyUIClient, ask: Prompt, server: Server
) -> None:
    comfyui.run(ask)
    before = server.times_loaded
    for body in ({"unload_models": True}, {"unload_models": True, "free_memory": True}):
        request = urllib.request.Request(
            f"{server.url}/free", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=30).close()
        time.sleep(1.5)
        other = copy.deepcopy(ask)
        other["4"]["inputs"]["seed"] = len(body)
        assert comfyui.run(other).ui["5"]["text"] == ["5"]
    assert server.times_loaded == before + 2


def test_the_unload_node_frees_the_model_after_the_answer(comfyui: ComfyUIClient, ask: Prompt, server: Server) -> None:
    ask["8"] = {"class_type": "TOPSUnload", "inputs": {"after": ["4", 0], "model": ["1", 0]}}
    ask["9"] = {"class_type": "PreviewAny", "inputs": {"source": ["8", 0]}}
    shown = comfyui.run(ask).ui
    assert shown["8"]["text"] == ["freed: mini"]
    assert shown["9"]["text"] == ["5"]
    before = server.times_loaded
    ask["4"]["inputs"]["prompt"] = "What colour is the triangle?"
    assert comfyui.run(ask).ui["9"]["text"] == ["yellow"]
    assert server.times_loaded == before + 1


def test_faults_are_said_before_the_run(comfyui: ComfyUIClient, ask: Prompt) -> None:
    blank = copy.deepcopy(ask)
    blank["4"]["inputs"] |= {"prompt": "  "}
    del blank["4"]["inputs"]["image"]
    with pytest.raises(InvalidWorkflow, match="prompt is empty"):
        comfyui.run(blank)
    for node_id, name, value, words in (
        ("1", "model", "LLM/not-there", "not-there"),
        ("1", "hub_id", "/etc", "model folders"),
        ("3", "options", "gamma=1", "gamma"),
        ("3", "method", "best", "best"),
        ("4", "max_tokens", 0, "smaller than min"),
        ("2", "image", "missing.png", "missing.png"),
        ("4", "model", ["2", 0], "mismatch"),
    ):
        broken = copy.deepcopy(ask)
        broken[node_id]["inputs"][name] = value
        with pytest.raises(InvalidWorkflow, match=words):
            comfyui.run(broken)


def test_more_pictures_come_in_on_the_inputs_that_grow(comfyui: ComfyUIClient, ask: Prompt, server: Server) -> None:
    Image.new("RGB", (40, 90), "red").save(server.base / "input" / "tall.png")
    ask["20"] = {"class_type": "LoadImage", "inputs": {"image": "tall.png"}}
    ask["21"] = {"class_type": "PreviewAny", "inputs": {"source": ["4", 4]}}
    ask["4"]["inputs"] |= {"keeps": "1.0,64,36", "images.image_4": ["20", 0], "images.image_5": ["20", 0]}
    # Three budgets are refused for fewer than three pictures.
    assert "visual tokens" in comfyui.run(ask).ui["21"]["text"][0]
    wrong = copy.deepcopy(ask)
    wrong["4"]["inputs"]["images.image_4"] = ["1", 0]
    with pytest.raises(InvalidWorkflow, match="mismatch"):
        comfyui.run(wrong)
    if "images" in comfyui.definitions()["TOPSAsk"]["input"]["optional"]:
        del ask["4"]["inputs"]["image"]
        ask["4"]["inputs"] |= {"prompt": "", "keeps": ""}
        assert "visual tokens" in comfyui.run(ask).ui["21"]["text"][0]


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1])
def test_seeds_above_63_bits_run(seed: int, comfyui: ComfyUIClient, ask: Prompt) -> None:
    ask["4"]["inputs"] |= {"seed": seed, "temperature": 0.01}
    assert comfyui.run(ask).ui["5"]["text"] == ["5"]


def test_a_workflow_of_a_newer_pack_runs_or_says_what_is_missing(comfyui: ComfyUIClient, ask: Prompt) -> None:
    ask["4"]["inputs"]["an_input_of_the_future"] = 3
    assert comfyui.run(ask).ui["5"]["text"] == ["5"]
    for node_id, name in (("4", "preset"), ("3", "then"), ("3", "method")):
        newer = copy.deepcopy(ask)
        newer[node_id]["inputs"][name] = "of the future"
        with pytest.raises(InvalidWorkflow, match="of the future"):
            comfyui.run(newer)
    ask["8"] = {"class_type": "TOPSFuture", "inputs": {"stats": ["4", 3]}}
    ask["9"] = {"class_type": "PreviewAny", "inputs": {"source": ["8", 0]}}
    with pytest.raises(InvalidWorkflow, match=r"TOPSFuture|#8"):
        comfyui.run(ask)


def test_two_tabs_get_their_own_answers(server: Server, ask: Prompt) -> None:
    answers: dict[str, list[str]] = {}

    def ask_in_a_tab(question: str) -> None:
        prompt = copy.deepcopy(ask)
        prompt["4"]["inputs"]["prompt"] = question
        answers[question] = ComfyUIClient(server.url).run(prompt).ui["5"]["text"]

    questions = ("What colour is the star?", "What colour is the triangle?")
    tabs = [threading.Thread(target=ask_in_a_tab, args=(question,)) for question in questions]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    assert answers == dict(zip(questions, (["red"], ["yellow"]), strict=True))


def test_blueprints_are_served(server: Server) -> None:
    if server.version == "0.3.64":
        pytest.skip("ComfyUI 0.3.64 has no blueprints")
    found = json.loads(server.get("/global_subgraphs"))
    ours = {entry["name"]: key for key, entry in found.items() if "tops-engine" in entry["info"]["node_pack"]}
    assert set(ours) == {blueprint.name for blueprint in BLUEPRINTS}
    for key in ours.values():
        assert json.loads(json.loads(server.get(f"/global_subgraphs/{key}"))["data"])["definitions"]["subgraphs"]


def test_translations_are_served(server: Server) -> None:
    translations = json.loads(server.get("/i18n"))
    for language in LANGUAGES:
        assert translations[language]["nodeDefs"]["TOPSAsk"]["inputs"]["prompt"]["tooltip"]
        assert translations[language]["dataTypes"]["TOPS_MODEL"]


def test_errors_of_a_run_are_one_clear_line(comfyui: ComfyUIClient, ask: Prompt) -> None:
    ask["3"]["inputs"] |= {"method": "divprune", "schedule": "5:10"}
    with pytest.raises(TopsError, match=r"TOPSPruning \(node 3\): The schedule prunes at layer 5"):
        comfyui.run(ask)
    ask["3"]["inputs"] |= {"method": "tops", "schedule": ""}
    assert comfyui.run(ask).ui["5"]["text"] == ["5"]


def test_text_and_progress_are_those_of_the_node_also_in_a_subgraph(comfyui: ComfyUIClient, ask: Prompt) -> None:
    """Use the frontend's ids, in which node 2 of subgraph 4 is ``4:2``."""
    inner: Prompt = {f"4:{node_id}": copy.deepcopy(node) for node_id, node in ask.items()}
    for node in inner.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][name] = [f"4:{value[0]}", value[1]]
    inner["4:4"]["inputs"]["prompt"] = "What shape is yellow?"  # results are cached by content, not by id
    heard: list[tuple[str, str]] = []
    comfyui.run(inner, None, lambda kind, data: heard.append((kind, str(data.get("node")))))
    assert ("text", "4:4") in heard
    assert ("progress", "4:4") in heard


def test_a_video_object_is_read_with_its_own_frame_rate(comfyui: ComfyUIClient) -> None:
    path = next(path for path in CURRENT if path.stem == "video_question")
    prompt = prompt_of(path, comfyui)
    prompt["7"] = {"class_type": "CreateVideo", "inputs": {"images": ["2", 0], "fps": 2.5}}
    prompt["3"]["inputs"]["video"] = ["7", 0]
    prompt["3"]["inputs"]["fps"] = 1000.0
    assert comfyui.run(prompt).ui["4"]["text"] == ["red"]


def test_kept_regions_drive_core_nodes(comfyui: ComfyUIClient, ask: Prompt) -> None:
    """Connect the token map's mask to ComfyUI's own mask nodes."""
    ask["8"] = {"class_type": "TOPSTokenMap", "inputs": {"stats": ["4", 3], "style": "tint", "stage": 0, "picture": 0}}
    ask["9"] = {"class_type": "MaskToImage", "inputs": {"mask": ["8", 1]}}
    ask["10"] = {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}}
    ask["11"] = {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}
    shown = comfyui.run(ask).ui
    sizes = []
    for node_id in ("10", "11"):
        (picture,) = shown[node_id]["images"]
        sizes.append(Image.open(io.BytesIO(comfyui.view(picture))).size)
    assert sizes == [(504, 504), (504, 504)]


def test_a_saved_picture_brings_its_workflow_back(comfyui: ComfyUIClient, ask: Prompt, tmp_path: Path) -> None:
    graph = read_workflow(ASK).graph
    ask["6"] = {"class_type": "SaveImage", "inputs": {"images": ["4", 1], "filename_prefix": "tops"}}
    ask["4"]["inputs"]["prompt"] = 'What "number" is {written}?  ü'
    (picture,) = comfyui.run(ask, {"workflow": graph}).ui["6"]["images"]
    (tmp_path / "map.png").write_bytes(comfyui.view(picture))
    found = read_workflow(tmp_path / "map.png")
    assert found.graph == graph
    assert found.prompt is not None
    assert found.prompt["4"]["inputs"]["prompt"] == ask["4"]["inputs"]["prompt"]
    assert comfyui.run(found.prompt).ui


def test_a_picture_is_uploaded_and_asked_about(comfyui: ComfyUIClient, ask: Prompt, tmp_path: Path) -> None:
    Image.new("RGBA", (30, 700), (255, 0, 0, 128)).save(tmp_path / "tall one.png")
    ask["2"]["inputs"]["image"] = comfyui.upload(tmp_path / "tall one.png")
    assert comfyui.run(ask).ui["5"]["text"][0]


def test_the_pack_lives_beside_one_with_modules_called_nodes_and_utils(server: Server) -> None:
    """Check that ComfyUI's ``nodes`` and ``utils`` are still its own modules after ours are imported."""
    stats = json.loads(server.get("/system_stats"))
    assert stats["system"]["comfyui_version"]
    assert "KSampler" in json.loads(server.get("/object_info/KSampler"))
