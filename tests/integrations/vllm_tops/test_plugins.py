"""Test that a server prunes by a method of another package, found by its entry point."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

import tops_engine.mini
from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, as_url, asking, environment, serving

TOY = Path(__file__).parents[2] / "contributing" / "toy_method.py"
SAMPLE = Path(tops_engine.mini.__file__).with_name("sample.jpg")
QUESTION = "What number is written?"


@pytest.mark.vllm
def test_a_server_prunes_by_the_method_of_a_package(tmp_path: Path) -> None:
    metadata = tmp_path / "toy-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[tops_engine.methods]\nfirst_tokens = toy_method\n")
    (tmp_path / "toy_method.py").write_text(TOY.read_text())
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = environment(PYTHONPATH=path)
    pruning = ["--method", "first_tokens", "--skip", "3", "--keep", "24"]
    ask = [*TOPS, "ask", str(SAMPLE), QUESTION, "--model", "mini", "--device", "cpu", *pruning, "--json"]
    answer = json.loads(subprocess.run(ask, env=variables, check=True, capture_output=True, text=True).stdout)
    with serving([([*TOPS, "serve", "mini", *pruning, *OPTIONS], variables)], tmp_path) as (server,):
        served = server.client.chat.completions.create(**asking(QUESTION, as_url(Image.open(SAMPLE))))
        assert served.choices[0].message.content.strip() == answer["text"].strip()
        assert served.usage.prompt_tokens == answer["usage"]["prompt_tokens"] - answer["usage"]["visual_tokens"] + 24
        (line,) = server.metric_lines("tops_pruning_info")
        assert 'method="first_tokens"' in line
        assert 'skip="3"' in line
