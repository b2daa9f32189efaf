"""Runs Python and `tops` in processes of their own, with plugins in a temporary folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tops_engine.registry import PLUGINS_VARIABLE

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

#: A script that begins with this runs several commands in its one process: the start takes longer than the commands.
TOPS = """
import contextlib, io, json, sys
from tops_engine import cli

def tops(*arguments):
    sys.argv = ["tops", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code, printed.getvalue()
    return printed.getvalue()
"""


def run_python(
    *arguments: str, plugins: str = "", path: tuple[Path, ...] = (), folder: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run Python with TOPS_PLUGINS set, and with these folders before all others on its path."""
    environment = {
        "PYTHONPATH": ":".join(map(str, [*path, ROOT, ROOT / "integrations", *sys.path])),
        PLUGINS_VARIABLE: plugins,
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def last_json(done: "subprocess.CompletedProcess[str]") -> Any:
    """Return what the last line of the output holds."""
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def plugin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one file of the module's ``TOY``, copied to a folder of a user."""
    return Path(shutil.copy(HERE / request.module.TOY, tmp_path_factory.mktemp("a user's folder")))
