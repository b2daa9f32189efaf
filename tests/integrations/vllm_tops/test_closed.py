"""Test the options that `tops serve` adds to vLLM's; vLLM itself is not needed."""

from pathlib import Path

import pytest
from vllm_tops.closed import closed_environment, closed_options, value_of


def test_without_options_a_server_listens_to_its_own_machine_and_fetches_nothing() -> None:
    options = closed_options(["--port", "8000"])
    assert options[:2] == ["--host", "127.0.0.1"]
    assert options[2] == "--allowed-media-domains"
    assert " " in options[3]  # no URL has a host with spaces


@pytest.mark.parametrize(
    ("options", "added"),
    [
        (["--host", "0.0.0.0"], ["--allowed-media-domains"]),
        (["--host=::1", "--allowed-media-domains", "a.org", "b.org"], []),
        (["--allowed_media_domains=a.org"], ["--host"]),
    ],
)
def test_options_that_are_given_stay(options: list[str], added: list[str]) -> None:
    assert closed_options(options)[::2] == added


def test_options_of_a_file_stay(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("host: 0.0.0.0\nallowed_media_domains: [a.org]\n")
    assert closed_options(["--config", str(file)]) == []
    file.write_text("port: 8000\n")
    assert len(closed_options([f"--config={file}"])) == 4
    assert len(closed_options(["--config", str(tmp_path / "missing.yaml")])) == 4
    file.write_bytes(b"host: [\xff")
    assert len(closed_options(["--config", str(file)])) == 4


def test_variables_that_are_set_stay() -> None:
    added = closed_environment({"VLLM_MAX_IMAGE_PIXELS": "1000", "HOME": "/"})
    assert added == {"VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0"}


def test_options_are_found_in_any_form() -> None:
    options = ["--revision=main", "--served_model_name", "mini", "--enforce-eager"]
    assert value_of("--revision", options) == "main"
    assert value_of("--served-model-name", options) == "mini"
    assert value_of("--enforce-eager", options) == ""
    assert value_of("--host", options) is None
