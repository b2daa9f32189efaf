"""Test what `tops encode-server` refuses before it listens."""

import pytest
import tops_encoder.cli  # registers the command

from tests.conftest import Tops


@pytest.mark.parametrize(
    ("key", "options", "sentence"),
    [
        (
            "",
            ["--host", "0.0.0.0"],
            "Other machines can reach 0.0.0.0; set a key of 16 characters or more in TOPS_API_KEY.",
        ),
        ("short", [], "The key in TOPS_API_KEY is too short; use 16 characters or more."),
        ("", ["--schedule", "0:64,1:16"], "not by a schedule; set the budget by keep"),
        ("a key of the encoder", ["--method", "fastv"], "prunes inside the language model, which an encoder does not"),
    ],
)
def test_what_cannot_be_served_is_refused(
    tops: Tops, monkeypatch: pytest.MonkeyPatch, key: str, options: list[str], sentence: str
) -> None:
    monkeypatch.setenv(tops_encoder.cli.API_KEY, key)
    result = tops("encode-server", "--model", "mini", "--device", "cpu", *options)
    assert result.code == 1
    assert sentence in result.err
