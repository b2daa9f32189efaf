"""Test downloads from a hub over real sockets: slow, cut, stopped, refused."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.hub_server import HubServer, refusing_port, use_hub
from tops_engine.downloads import fetch
from tops_engine.errors import ModelNotFound, UnsupportedModel
from tops_engine.hub_files import files_to_read
from tops_engine.mini import mini_path
from tops_engine.settings import ModelSpec

SPEC = ModelSpec(model="someone/small-model")
WEIGHTS = "model.safetensors"


class Stopped(BaseException):
    """What a host raises when the user stops the run."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """Serve mini with its weights under a published checkpoint's name."""
    folder = shutil.copytree(mini_path(), tmp_path / "served")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    with HubServer(folder).running() as server:
        use_hub(monkeypatch, server.url, tmp_path / "hub")
        yield server


def stopping_when(met: Callable[[int, int], bool], seen: list[tuple[int, int]]) -> Callable[[int, int], None]:
    def progress(done: int, total: int, /) -> None:
        seen.append((done, total))
        if met(done, total):
            raise Stopped

    return progress


def test_a_stopped_download_ends_at_once_and_is_continued_in_the_models_folder(hub: HubServer, tmp_path: Path) -> None:
    size = (hub.folder / WEIGHTS).stat().st_size
    hub.rate = size / 4
    seen: list[tuple[int, int]] = []
    met: list[float] = []

    def half(done: int, total: int) -> bool:
        if total and done > total / 2:
            met.append(time.monotonic())
        return bool(met)

    with pytest.raises(Stopped):
        fetch(SPEC, stopping_when(half, seen), tmp_path / "models")
    assert time.monotonic() - met[0] < 1
    assert len({done for done, total in seen if total}) > 3
    assert {total for _, total in seen} - {0} == {seen[-1][1]}
    assert seen[-1][1] >= size
    assert not (tmp_path / "models" / SPEC.model).exists()

    hub.rate, hub.sent = 0, 0
    folder = fetch(SPEC, lambda done, total: None, tmp_path / "models")
    assert folder == tmp_path / "models" / SPEC.model
    assert hub.sent < 0.8 * size
    assert (folder / WEIGHTS).read_bytes() == (hub.folder / WEIGHTS).read_bytes()
    assert not (folder / "pytorch_model.bin").exists()
    assert not list((tmp_path / "models" / ".tops_downloads").iterdir())


def test_a_cut_connection_is_taken_up_again_into_the_cache(hub: HubServer) -> None:
    hub.cut_after = 2**20
    folder = fetch(SPEC, lambda done, total: None)
    assert (folder / WEIGHTS).read_bytes() == (hub.folder / WEIGHTS).read_bytes()
    before = len(hub.requests)
    assert fetch(SPEC, lambda done, total: None) == folder
    assert len(hub.requests) == before + 1  # whether the commit is still the newest


def test_waiting_for_a_hub_that_does_not_answer_can_be_stopped(hub: HubServer) -> None:
    hub.delay = 5.0
    begun = time.monotonic()
    with pytest.raises(Stopped):
        fetch(SPEC, stopping_when(lambda done, total: time.monotonic() - begun > 0.5, []))
    assert time.monotonic() - begun < 1.5


@pytest.mark.parametrize(
    ("status", "words"), [(403, "only to those who accept its terms: .*HF_TOKEN"), (401, "is not on the hub")]
)
def test_why_a_checkpoint_is_not_given_is_said(hub: HubServer, status: int, words: str) -> None:
    hub.status = status
    with pytest.raises(ModelNotFound, match=words):
        fetch(SPEC, lambda done, total: None)


def test_weights_of_a_model_that_no_family_runs_are_not_downloaded(hub: HubServer) -> None:
    (hub.folder / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(UnsupportedModel):
        fetch(SPEC, lambda done, total: None)
    assert hub.sent == 0


def test_without_a_network_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with refusing_port() as port:
        use_hub(monkeypatch, f"http://127.0.0.1:{port}", tmp_path / "hub")
        begun = time.monotonic()
        with pytest.raises(ModelNotFound, match="cannot be reached"):
            fetch(SPEC, lambda done, total: None)
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["model.safetensors", "model-00001-of-00002.safetensors"], ["model.safetensors"]),
        (
            ["model-00001-of-00002.safetensors", "consolidated.safetensors", "model.safetensors.index.json"],
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors"],
        ),
        (["adapter.safetensors", "onnx/model.safetensors", "x.gguf"], ["adapter.safetensors"]),
    ],
)
def test_only_what_the_engine_reads_is_downloaded(names: list[str], weights: list[str]) -> None:
    others = ["README.md", "config.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "pytorch_model.bin"]
    small = ["config.json", "merges.txt", "tokenizer.model", "chat_template.jinja"]
    assert files_to_read(others + names, weights=False) == small
    assert files_to_read(others + names, weights=True) == small + weights
