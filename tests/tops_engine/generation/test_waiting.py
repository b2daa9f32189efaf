"""Test on a simulated GPU that the host does not wait between the vision tower and the first token."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Picture
from tests.support.checkpoints import save_llava, save_llava_next
from tests.support.checkpoints_internvl import save_internvl
from tests.support.checkpoints_qwen import save_qwen2_5_vl, save_qwen3_vl
from tests.support.checkpoints_video import save_onevision
from tests.support.simulated_gpu import SimulatedGPU, move_to_gpu
from tops_engine.conversation.messages import Conversation, read_conversation, user_message, video_message
from tops_engine.device.checks import deferred_checks
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput
from tops_engine.families import Family
from tops_engine.generation.prefix_cache import PrefixCache
from tops_engine.generation.run import Run
from tops_engine.methods import METHODS
from tops_engine.settings import Generation, ModelSpec, Pruning

GENERATION = Generation(max_tokens=1)

CHECKPOINTS: dict[str, Callable[..., Path]] = {
    "llava-1.5": save_llava,
    "llava-next": save_llava_next,
    "llava-onevision": lambda folder: save_onevision(folder, most_tiles=9),
    "qwen2.5-vl": save_qwen2_5_vl,
    "qwen3-vl": save_qwen3_vl,
    "internvl": save_internvl,
}

#: A CLIP beside the checkpoint is not moved to the simulated GPU.
NAMES = [
    name
    for name, method in METHODS.items()
    if "clip" not in method.model_fields and name != "resize" and not method.for_videos
]
FOR_VIDEOS = [name for name, method in METHODS.items() if method.for_videos]


#: They share the family's class with another checkpoint.
REPEATED = {"llava-next"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.full if name in REPEATED else ()) for name in CHECKPOINTS],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Family]:
    """Return the same model on the CPU and on the simulated GPU."""
    folder = CHECKPOINTS[request.param](tmp_path_factory.mktemp(request.param))
    here, there = (Engine.load(ModelSpec(model=str(folder), device="cpu")).family for _ in range(2))
    move_to_gpu(there.model)
    return here, there


@pytest.fixture(scope="module")
def llava_on_gpu(llava_folder: Path) -> Family:
    family = Engine.load(ModelSpec(model=str(llava_folder), device="cpu")).family
    move_to_gpu(family.model)
    return family


@pytest.fixture(scope="module")
def conversations(request: pytest.FixtureRequest) -> list[Conversation]:
    picture: Picture = request.getfixturevalue("picture")
    wide, tall = picture(110, 70, 1), picture(70, 110, 2)
    messages = [
        user_message("What is shown?", wide),
        user_message("What else?", wide),
        user_message("And:", tall, wide),
    ]
    return [read_conversation([message]) for message in messages]


def first_tokens(
    family: Family,
    asked: list[Conversation],
    pruning: Pruning,
    prefixes: PrefixCache | None = None,
    generation: Generation = GENERATION,
) -> list[list[int]]:
    run = Run(family, "a model", asked, pruning, generation, prefixes=prefixes)
    # Not in inference mode, which hides from Python what torch's operations are made of.
    with torch.no_grad():
        Run.start.__wrapped__(run)  # type: ignore[attr-defined]
    return [answer.token_ids for answer in run.answers()]


def without_waiting(family: Family, *asked: Any, **options: Any) -> list[list[int]]:
    with SimulatedGPU() as gpu:
        tokens = first_tokens(family, *asked, **options)
    assert not in_between(gpu)
    return tokens


#: What reads from the device after the first token.
AFTERWARDS = ("(settle)", "(_read)", "(_frames)", "(_token_map)")


def in_between(gpu: SimulatedGPU) -> list[str]:
    """Return the waits before the first token. After it the host reads the token, the checks and the kept indices."""
    return [wait for wait in gpu.waits if not any(name in wait for name in AFTERWARDS)]


@pytest.mark.parametrize("method", ["tops", "fastv", "divprune"])
def test_one_question(pair: tuple[Family, Family], conversations: list[Conversation], method: str) -> None:
    here, there = pair
    asked = conversations[:1], Pruning(method=method, keep=0.4)
    assert without_waiting(there, *asked) == first_tokens(here, *asked)


@pytest.mark.parametrize("keep", [0.4, 1.0])
def test_a_batch_of_different_lengths(
    pair: tuple[Family, Family], conversations: list[Conversation], keep: float
) -> None:
    here, there = pair
    asked = conversations, Pruning(keep=keep)
    assert without_waiting(there, *asked) == first_tokens(here, *asked)


def test_the_same_picture_again(pair: tuple[Family, Family], conversations: list[Conversation]) -> None:
    here, there = pair
    caches = [PrefixCache(2**30) for _ in pair]
    for conversation in conversations[:2]:
        asked = [conversation], Pruning(keep=0.4)
        expected = first_tokens(here, *asked, prefixes=caches[0])
        assert without_waiting(there, *asked, prefixes=caches[1]) == expected


def test_a_drawn_token(pair: tuple[Family, Family], conversations: list[Conversation]) -> None:
    here, there = pair
    asked, drawn = (conversations[:2], Pruning(keep=0.4)), Generation(max_tokens=1, temperature=1.5, seed=3)
    assert without_waiting(there, *asked, generation=drawn) == first_tokens(here, *asked, generation=drawn)


@pytest.mark.parametrize("name", NAMES)
def test_which_methods_wait(llava_on_gpu: Family, conversations: list[Conversation], name: str) -> None:
    with SimulatedGPU() as gpu:
        first_tokens(llava_on_gpu, conversations[:1], Pruning(method=name, keep=1.0 if name == "none" else 0.6))
    assert bool(in_between(gpu)) == METHODS[name].waits_for_device


@pytest.fixture(scope="module")
def onevision_on_gpu(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = save_onevision(tmp_path_factory.mktemp("onevision"))
    family = Engine.load(ModelSpec(model=str(folder), device="cpu")).family
    move_to_gpu(family.model)
    return family


@pytest.mark.parametrize("name", FOR_VIDEOS)
def test_which_methods_for_videos_wait(onevision_on_gpu: Family, picture: Picture, name: str) -> None:
    asked = [read_conversation([video_message("What?", [picture(60, 60, number) for number in range(6)])])]
    with SimulatedGPU() as gpu:
        first_tokens(onevision_on_gpu, asked, Pruning(method=name, keep=0.4))
    assert bool(in_between(gpu)) == METHODS[name].waits_for_device, in_between(gpu)


def test_values_that_are_no_numbers_are_found_out_and_nothing_is_kept(
    llava_on_gpu: Family, conversations: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = llava_on_gpu.project
    monkeypatch.setattr(llava_on_gpu, "project", lambda prompts: [rows * math.nan for rows in project(prompts)])
    prefixes = PrefixCache(2**30)
    with SimulatedGPU() as gpu:
        with pytest.raises(InvalidInput, match="NaN or infinite values in features"):
            first_tokens(llava_on_gpu, conversations[:1], Pruning(keep=0.4), prefixes=prefixes)
        assert not in_between(gpu)
        monkeypatch.undo()
        first_tokens(llava_on_gpu, conversations[:1], Pruning(keep=0.4), prefixes=prefixes)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("method", ["tops", "fastv", "divprune"])
def test_a_real_gpu_agrees(name: str, method: str, conversations: list[Conversation], tmp_path: Path) -> None:
    family = Engine.load(ModelSpec(model=str(CHECKPOINTS[name](tmp_path)), device="cuda")).family
    prefixes = PrefixCache(2**30)
    for asked in (conversations[:1], conversations[:1], conversations[:1], conversations[1:2], conversations):
        run = Run(family, "a model", asked, Pruning(method=method, keep=0.4), GENERATION, None, prefixes)
        with torch.inference_mode():
            torch.cuda.set_sync_debug_mode("error")
            try:
                with deferred_checks() as checks:
                    _, prefilled = run._read_prompts()
                    tokens = run._writer.choose(prefilled.logits)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            checks.settle()
            run._reuse.store(prefilled)
        assert len(tokens.tolist()) == len(asked)
