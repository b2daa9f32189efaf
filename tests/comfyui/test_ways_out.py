"""Test in a real ComfyUI what gives a model's memory back, and what a user meets with bad input."""

import copy
import json
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tops_workflow.comfyui_client import ComfyUIClient
from tops_workflow.formats import InvalidWorkflow, Prompt
from tops_workflow.host import Interrupted

import tops_engine.mini
from tests.comfyui.conftest import Server
from tops_engine.errors import TopsError

WEIGHTS = Path(tops_engine.mini.__file__).with_name("weights")
#: How long ComfyUI may take to give memory back on a busy machine.
FREE_SECONDS = 20
PHOTO: dict[str, Any] = {"class_type": "LoadImage", "inputs": {"image": "tops_photo.jpg"}}
LOADER: dict[str, Any] = {
    "model": "mini", "dtype": "auto", "device": "auto", "quantization": "none", "attention": "sdpa",
}  # fmt: skip
ASK: dict[str, Any] = {"model": ["1", 0], "image": ["2", 0], "max_tokens": 8, "temperature": 0.0, "seed": 0}
PRUNING: dict[str, Any] = {
    "method": "tops", "keep": 0.222, "schedule": "", "alpha": 0.5, "lambda": 1.0, "raters": "last",
    "positions": "default",
}  # fmt: skip


def question(text: str, **inputs: Any) -> Prompt:
    return {
        "1": {"class_type": "TOPSLoadModel", "inputs": dict(LOADER)},
        "2": copy.deepcopy(PHOTO),
        "3": {"class_type": "TOPSAsk", "inputs": ASK | {"prompt": text} | inputs},
    }


def captions(**inputs: Any) -> Prompt:
    settings = {"model": ["1", 0], "style": "caption", "batch_size": 1, "max_tokens": 32, "temperature": 0.0, "seed": 0}
    return {
        "1": {"class_type": "TOPSLoadModel", "inputs": dict(LOADER)},
        "2": copy.deepcopy(PHOTO),
        "3": {"class_type": "RepeatImageBatch", "inputs": {"image": ["2", 0], "amount": 200}},
        "4": {"class_type": "TOPSCaptionBatch", "inputs": settings | {"images": ["3", 0]} | inputs},
    }


def memory(server: Server) -> dict[str, Any]:
    return dict(json.loads(server.get("/test/memory")))


def free(server: Server, **body: bool) -> None:
    request = urllib.request.Request(
        f"{server.url}/free", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=30).close()
    # The worker does it between prompts, and an interrupted one ends after it is announced.
    deadline = time.monotonic() + FREE_SECONDS
    time.sleep(1)
    while "VisionLanguageModel" in memory(server)["held"] and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(1)


def stopped(comfyui: ComfyUIClient, prompt: Prompt, then: Server | None = None) -> None:
    """Interrupt a run, and then press Unload models if a server is given."""
    sent: list[float] = []

    def stop(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data.get("node") == "4" and not sent:
            sent.append(time.monotonic())
            threading.Thread(target=comfyui.interrupt).start()

    with pytest.raises(Interrupted):
        comfyui.run(prompt, None, stop)
    if then is not None:
        free(then, unload_models=True)


def failing(comfyui: ComfyUIClient, prompt: Prompt, then: Server | None = None) -> None:
    with pytest.raises(TopsError, match="less than one"):
        comfyui.run(prompt)
    if then is not None:
        free(then, unload_models=True)


def test_every_way_out_gives_the_memory_back(comfyui: ComfyUIClient, server: Server) -> None:
    """Print the counters of ComfyUI's memory manager after each way out, each from a loaded model."""
    error = {"keeps": "0.001"}
    ways: dict[str, Callable[[int], object]] = {
        "button Unload models": lambda seed: free(server, unload_models=True),
        "button Free model and node cache": lambda seed: free(server, unload_models=True, free_memory=True),
        "unload on TOPS Ask": lambda seed: comfyui.run(question("And now?", seed=seed, unload=True)),
        "unload on TOPS Caption Batch": lambda seed: comfyui.run(captions(images=["2", 0], seed=seed, unload=True)),
        "TOPS Unload": lambda seed: comfyui.run(
            question("Next?", seed=seed)
            | {"4": {"class_type": "TOPSUnload", "inputs": {"after": ["3", 0], "model": ["1", 0]}}}
        ),
        "room for the next model": lambda seed: comfyui.run(
            {"1": {"class_type": "TestTakesAllMemory", "inputs": {"number": seed}}}
        ),
        "an error, with unload": lambda seed: failing(comfyui, question("Bad", seed=seed, unload=True, **error)),
        "an interruption, with unload": lambda seed: stopped(comfyui, captions(seed=seed, unload=True)),
        "an error, then Unload models": lambda seed: failing(comfyui, question("Bad", seed=seed, **error), then=server),
        "an interruption, then Unload models": lambda seed: stopped(comfyui, captions(seed=seed), then=server),
    }
    rows = []
    for number, (name, leave) in enumerate(ways.items(), 1):
        comfyui.run(question("What number is written?", seed=number))
        before = memory(server)
        assert before["held"].count("VisionLanguageModel") == 1, name
        assert before["bytes"] > 0
        leave(number)
        rows.append((name, before, memory(server)))
    print(f"\n{'way out':36} {'held before':>11} {'MB':>6} {'held after':>10} {'MB':>6} {'in RAM':>6}")
    for name, before, after in rows:
        megabytes = [state["bytes"] / 1e6 for state in (before, after)]
        print(
            f"{name:36} {len(before['held']):11} {megabytes[0]:6.1f} {len(after['held']):10} {megabytes[1]:6.1f} "
            f"{after['engines']:6}"
        )
    for name, _, after in rows:
        assert "VisionLanguageModel" not in after["held"], name
        assert after["bytes"] == 0, name
    # Those that ask for it give back the main memory, too.
    assert {name for name, _, after in rows if not after["engines"]} >= {
        "unload on TOPS Ask", "unload on TOPS Caption Batch", "TOPS Unload", "an error, with unload",
        "an interruption, with unload",
    }  # fmt: skip
    assert comfyui.run(question("What number is written?", seed=99)).ui["3"]["text"][0] == "5"


def refusals(server: Server, prompt: Prompt) -> list[dict[str, Any]]:
    """Return the errors of a refused prompt, as the frontend gets them."""
    body = json.dumps({"prompt": prompt}).encode()
    request = urllib.request.Request(f"{server.url}/prompt", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=60)
    answer = json.loads(error.value.read())
    return [one for node in answer["node_errors"].values() for one in node["errors"]]


def test_a_refusal_is_one_error_that_the_message_shows_whole(server: Server) -> None:
    """The frontend shows the details of an exception; of a returned sentence it shows the input's name only."""
    prompt = question("What?", pruning=["5", 0])
    prompt["5"] = {"class_type": "TOPSPruning", "inputs": PRUNING | {"options": "gamma=1"}}
    (error,) = refusals(server, prompt)
    assert error["type"].startswith("exception_during")
    assert "gamma" in error["details"]
    prompt["5"]["inputs"] = PRUNING | {"method": "fastv"}
    (error,) = refusals(server, prompt)
    assert "keep=0.222 cannot be met by pruning at layer 2 of 8" in error["details"]
    prompt["1"]["inputs"]["hub_id"] = "someone/Qwen3-VL-GGUF"
    prompt["5"]["inputs"] = PRUNING
    (error,) = refusals(server, prompt)
    assert "GGUF" in error["details"]


def test_a_model_deleted_between_runs_is_one_sentence_and_the_next_run_works(
    comfyui: ComfyUIClient, server: Server
) -> None:
    folder = server.base / "models" / "LLM" / "gone"
    shutil.copytree(WEIGHTS, folder)
    prompt = question("What number is written?", seed=7)
    prompt["1"]["inputs"]["model"] = "LLM/gone"
    assert comfyui.run(prompt).ui["3"]["text"][0] == "5"
    free(server, unload_models=True, free_memory=True)
    shutil.rmtree(folder)
    prompt["3"]["inputs"]["seed"] = 8
    with pytest.raises((TopsError, InvalidWorkflow), match=r"no checkpoint 'gone'|no folder"):
        comfyui.run(prompt)
    assert comfyui.run(question("What number is written?", seed=9)).ui["3"]["text"][0] == "5"


def test_a_checkpoint_of_the_hub_without_a_network_is_said_at_once(comfyui: ComfyUIClient) -> None:
    prompt = question("What?")
    prompt["1"]["inputs"]["hub_id"] = "someone/not-here"
    begun = time.monotonic()
    with pytest.raises(TopsError, match="was not downloaded before, and HF_HUB_OFFLINE forbids downloads"):
        comfyui.run(prompt)
    assert time.monotonic() - begun < 10


def test_bad_input_is_answered_or_refused_in_a_sentence(comfyui: ComfyUIClient) -> None:
    assert comfyui.run(question("Describe it. " * 800, max_tokens=2)).ui["3"]["text"]
    with pytest.raises(InvalidWorkflow, match="bigger than max"):
        comfyui.run(question("What?", seed=2**64))
    assert comfyui.run(question("What?", seed=2**64 - 1, temperature=1.0)).ui["3"]["text"]


def test_a_clip_of_text_only_is_refused_in_a_sentence(comfyui: ComfyUIClient, server: Server) -> None:
    if server.version == "0.3.64":
        pytest.skip("ComfyUI 0.3.64 has no language model of text only")
    prompt = question("What?", model=["6", 0])
    prompt["5"] = {"class_type": "TestSmallClip", "inputs": {"kind": "text"}}
    prompt["6"] = {"class_type": "TOPSLoadFromClip", "inputs": {"clip": ["5", 0]}}
    del prompt["1"]
    with pytest.raises(TopsError, match="TOPSLoadFromClip"):
        comfyui.run(prompt)


def test_two_tabs_that_run_at_once_share_one_model(comfyui: ComfyUIClient, server: Server) -> None:
    comfyui.run(question("What number is written?", seed=20))
    before, found = server.times_loaded, {}

    def run(number: int) -> None:
        report = ComfyUIClient(server.url).run(question("What number is written?", seed=20 + number))
        found[number] = report.ui["3"]["text"][0]

    tabs = [threading.Thread(target=run, args=(number,)) for number in (1, 2)]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    assert found == {1: "5", 2: "5"}
    assert server.times_loaded == before
    assert memory(server)["held"].count("VisionLanguageModel") == 1


def test_a_list_of_prompts_and_a_batch_of_pictures(comfyui: ComfyUIClient) -> None:
    """One engine run for the pictures of a batch: as many captions as pictures."""
    prompt = captions(batch_size=4, max_tokens=8)
    prompt["3"]["inputs"]["amount"] = 4
    prompt["5"] = {"class_type": "PreviewAny", "inputs": {"source": ["4", 0]}}
    texts = comfyui.run(prompt).ui["5"]["text"]
    assert len(texts) == 4


def test_the_log_has_no_warning_of_ours(server: Server) -> None:
    assert "FutureWarning" not in server.log
    assert "past_key_values" not in server.log
