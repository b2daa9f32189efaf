"""Rehearse the measurement for GPUs on a CPU, with two real servers of a small model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.vllm_tops.servers import OPTIONS, environment

ROOT = Path(__file__).parents[3]


@pytest.mark.vllm
def test_the_measurement_runs_and_writes_its_results(tmp_path: Path) -> None:
    written = tmp_path / "serving.json"
    options = ["--model", "mini", "--keep", "0.222", "--minutes", "0.1", "--concurrency", "1,3", "--tokens", "4"]
    command = [sys.executable, "-m", "benchmarks.serving_gpu", *options, "--size", "160x120", "--json", str(written)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [*command, "--", *OPTIONS],
        env=environment(PYTHONPATH=path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(written.read_text())
    assert result["rounds"] >= 1
    sides = [(row["concurrency"], row["side"]) for row in result["results"]]
    assert sides == [(1, "unpruned"), (1, "pruned"), (3, "unpruned"), (3, "pruned")]
    unpruned, pruned = result["results"][:2]
    assert unpruned["prompt_tokens"] - pruned["prompt_tokens"] == 144 - 32
    assert all(row["requests_a_second"] > 0 and row["first_token_s"] > 0 for row in result["results"])
    assert "first token ms" in done.stdout
