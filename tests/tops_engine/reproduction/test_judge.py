"""Test what is said of a judge that refuses, and of answers that it did not score."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tests.conftest import Tops
from tops_engine.errors import InvalidInput, TopsError
from tops_engine.reproduction.judge import check_judge, check_judged
from tops_engine.reproduction.protocols import read_protocols


class Judge(BaseHTTPRequestHandler):
    """Scores with the right key only."""

    seen: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        allowed = self.headers["Authorization"] == "Bearer right" and self.path == "/v1/chat/completions"
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Write nothing to the terminal."""


@pytest.fixture
def address() -> Iterator[str]:
    Judge.seen = []
    server = HTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_judge_that_answers_is_asked_once(address: str) -> None:
    check_judge(["mm-vet"], {"OPENAI_API_KEY": "right", "OPENAI_API_URL": address + "/", "MODEL_VERSION": "my-judge"})
    assert [body["model"] for body in Judge.seen] == ["my-judge"]
    check_judge([], {"OPENAI_API_KEY": "wrong", "OPENAI_API_URL": address})
    assert len(Judge.seen) == 1


def test_a_judge_that_refuses_stops_the_command_before_anything_runs(
    address: str, tops: Tops, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    monkeypatch.setenv("OPENAI_API_URL", address)
    result = tops("reproduce", "llava-1.5-7b", "--model", "mini", "--device", "cpu", "--benchmarks", "mm-vet")
    assert result.code == 1
    assert "judge of mm-vet" in result.err
    assert "HTTP 401" in result.err
    assert "OPENAI_API_KEY" in result.err


@pytest.mark.parametrize(
    ("wrong", "sentence"), [("http://127.0.0.1:9/v1", "cannot be reached"), ("localhost", "is no address")]
)
def test_a_judge_that_is_not_there_is_named(wrong: str, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        check_judge(["mm-vet"], {"OPENAI_API_KEY": "any", "OPENAI_API_URL": wrong})


def test_answers_without_a_score_do_not_count_as_wrong() -> None:
    benchmark = read_protocols().benchmarks["mm-vet"]
    scored = {"gpt_eval_score": {"score": 0.5, "eval_model": "my-judge"}}
    missing = {"gpt_eval_score": {"score": 0.0, "eval_model": ""}}
    check_judged("mm-vet", benchmark, [scored, scored])
    with pytest.raises(TopsError, match="left 1 of 2 answers to mm-vet without a score"):
        check_judged("mm-vet", benchmark, [scored, missing])
