"""The square root of relevance is measured beside TOPS as published, and its results are read without its class."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools.accuracy_tables import read
from tops_engine.methods import METHODS

MEASURE = """
import sys
from pathlib import Path
from tools import record_square_root

record_square_root.JOURNALS = record_square_root.RESULTS = Path(sys.argv[1])
record_square_root.measure("test", num_scenes=2, budgets=(0.111,))
"""


@pytest.mark.full
def test_the_square_root_is_compared_with_tops(tmp_path: Path) -> None:
    # In a process of its own: the class registers a method, which no other test may see.
    subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    assert "tops_square_root" not in METHODS
    result = read(tmp_path / "mini-square-root-test.json")
    rows = {row.method: row for row in result.rows}
    for form in ("tops", "tops:stages=first"):
        root = rows[form.replace("tops", "tops_square_root")]
        assert root.layer_average == rows[form].layer_average
        assert root.loss_increase != rows[form].loss_increase
        assert {one.against for one in root.differences} == {"tops", "tops:stages=first"}
