"""Test checkpoints of the hub: what happens where it cannot be reached, answers slowly, or not at all."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.hub_server import COMMIT, HubServer, dropping_port, refusing_port, silent_port
from tops_engine.checkpoints import checkpoint_source
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.errors import ModelNotFound
from tops_engine.mini import mini_path
from tops_engine.settings import Generation, ModelSpec

MODEL = "someone/small-model"

UseHub = Callable[[str], None]


@pytest.fixture
def use_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> UseHub:
    """Return a function that sets the address of the hub, as HF_ENDPOINT does; nothing is downloaded yet."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def use(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return use


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer(mini_path()).running() as server:
        yield server


@pytest.mark.parametrize(
    ("port", "reason"),
    [
        (refusing_port, r"\[Errno \d+\] Connection refused"),
        (dropping_port, r"no connection within 1\.5 s; on a slow network set HF_HUB_ETAG_TIMEOUT to more"),
    ],
)
def test_without_a_network_the_answer_is_one_quiet_sentence_in_two_seconds(
    use_hub: UseHub,
    port: Callable[[], AbstractContextManager[int]],
    reason: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with port() as number:
        use_hub(f"http://127.0.0.1:{number}")
        start = time.monotonic()
        with pytest.raises(
            ModelNotFound,
            match=rf"^The checkpoint '{MODEL}' was not downloaded before, and the hub http://127\.0\.0\.1:{number} "
            rf"cannot be reached \({reason}\)\. The embedded model, 'mini', needs no download\.$",
        ):
            Engine.load(ModelSpec(model=MODEL, device="cpu"))
        assert time.monotonic() - start < 2
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_a_hub_that_accepts_and_never_answers_is_given_its_time_once(
    use_hub: UseHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 2)
    with silent_port() as number:
        use_hub(f"http://127.0.0.1:{number}")
        start = time.monotonic()
        with pytest.raises(ModelNotFound, match=r"cannot be reached \(timed out\)"):
            Engine.load(ModelSpec(model=MODEL, device="cpu"))
        assert 2 <= time.monotonic() - start < 3


def test_a_slow_hub_is_waited_for_and_its_download_serves_later_without_a_network(
    use_hub: UseHub, hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    spec, question = ModelSpec(model=MODEL, device="cpu"), [user_message("What?", mini_path().parent / "sample.jpg")]
    generation = Generation(max_tokens=4)
    use_hub(hub.url)
    hub.delay = 2.5
    expected = Engine.load(spec).chat(question, None, generation)

    with refusing_port() as number:
        use_hub(f"http://127.0.0.1:{number}")
        caplog.set_level(logging.WARNING)
        start = time.monotonic()
        assert checkpoint_source(MODEL).endswith(f"/snapshots/{COMMIT}")
        assert time.monotonic() - start < 1
        assert Engine.load(spec).chat(question, None, generation).token_ids == expected.token_ids
    assert not caplog.records


def test_a_broken_download_says_what_is_missing(use_hub: UseHub, hub: HubServer, tmp_path: Path) -> None:
    use_hub(hub.url)
    (tmp_path / "hub").mkdir()
    Engine.load(ModelSpec(model=MODEL, device="cpu"))
    for path in (tmp_path / "hub").rglob("model.safetensors"):
        path.unlink()
    with refusing_port() as number:
        use_hub(f"http://127.0.0.1:{number}")
        with pytest.raises(ModelNotFound, match=r"model\.safetensors.* The hub cannot be reached for what is"):
            Engine.load(ModelSpec(model=MODEL, device="cpu"))


def test_offline_mode_makes_no_request(use_hub: UseHub, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    with pytest.raises(ModelNotFound, match="not downloaded before, and HF_HUB_OFFLINE forbids downloads"):
        Engine.load(ModelSpec(model=MODEL, device="cpu"))
    assert len(hub.requests) == before


def test_a_proxy_is_asked_in_place_of_the_hub(use_hub: UseHub, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session

    use_hub("http://hub.invalid")
    monkeypatch.setenv("HTTP_PROXY", hub.url)
    close_session()  # the hub's client reads the proxies when it is made
    try:
        assert checkpoint_source(MODEL) == MODEL
        assert hub.requests[-1] == f"http://hub.invalid/{MODEL}/resolve/main/config.json"
        monkeypatch.delenv("HTTP_PROXY")
        close_session()
        with pytest.raises(ModelNotFound, match=r"the hub http://hub\.invalid cannot be reached"):
            checkpoint_source(MODEL)
    finally:
        close_session()


@pytest.mark.full
def test_the_command_ends_at_once_without_a_network(tmp_path: Path) -> None:
    with refusing_port() as number:
        environment = {"HF_ENDPOINT": f"http://127.0.0.1:{number}", "HF_HOME": str(tmp_path)}
        result = subprocess.run(
            [sys.executable, "-m", "tops_engine.cli", "ask", "What?", "--model", MODEL],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 1
    assert result.stdout == ""
    assert " ".join(result.stderr.split()).startswith(f"Error: The checkpoint '{MODEL}' was not downloaded before")
    assert "Retrying" not in result.stderr
