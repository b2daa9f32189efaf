"""Write ``tops_engine/families/checked.json`` from the results of the tests: python -m tools.record_checked

The file says for each model type which claims passed; `tops models` prints it.
"""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests" / "tops_engine" / "families" / "test_families.py"
RECORD = ROOT / "tops_engine" / "families" / "checked.json"


class PassedClaims:
    """A plugin of pytest that collects the claims whose tests passed, by model type."""

    def __init__(self) -> None:
        self.by_model_type: dict[str, list[str]] = {}

    def pytest_runtest_makereport(self, item: pytest.Function, call: "pytest.CallInfo[None]") -> None:
        if item.originalname == "test_claim" and call.when == "call" and call.excinfo is None:
            parameters = item.callspec.params
            self.by_model_type.setdefault(str(parameters["row"]), []).append(str(parameters["claim"]))


def main() -> int:
    passed = PassedClaims()
    every = ["-m", "full or not full"]
    code = pytest.main([str(TESTS), "-k", "test_claim", *every, "--exitfirst"], plugins=[passed])
    if code == pytest.ExitCode.OK:
        record = {model_type: sorted(claims) for model_type, claims in sorted(passed.by_model_type.items())}
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
