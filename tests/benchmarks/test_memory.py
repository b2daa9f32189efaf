"""The memory of a process that is asked about many pictures stays level, and forgetting gives it back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count resident memory in another way")
def test_memory_stays_level_within_the_bound_and_is_given_back(tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    command = [sys.executable, "-m", "benchmarks.memory", "--num-pictures", "100", "--max-tokens", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "integrations")])}
    command += ["--cache-mb", "27", "--json", str(out)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    rows = {row["stage"]: row for row in json.loads(out.read_text())["rows"]}
    resident = {stage: row["resident_bytes"] / 2**20 for stage, row in rows.items()}
    cached = {stage: row["cache_bytes"] / 2**20 for stage, row in rows.items() if row["cache_bytes"] is not None}
    # 20 pictures of 1 MiB fill the bound nearly.
    assert 17 < cached["20 pictures"] <= cached["100 pictures"] <= 27
    assert resident["100 pictures"] < resident["40 pictures"] + 10
    assert cached["after forget()"] == cached["after unload()"] == 0
    assert resident["after forget()"] < resident["100 pictures"] - 15
    assert resident["after unload()"] < resident["loaded"] + 40
