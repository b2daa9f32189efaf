"""A node in one file of the pack's folder ``nodes`` is found, and recorded, without another edit."""

import json
import shutil
from pathlib import Path

import pytest

from tests.contributing.conftest import HERE, ROOT, last_json, run_python

#: Loads a copy of the pack as ComfyUI does: by its path, as a module of any name.
LOAD = """
import importlib.util, json, sys

path, name = sys.argv[1], "a_pack"
spec = importlib.util.spec_from_file_location(name, path + "/__init__.py", submodule_search_locations=[path])
module = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
node = module.NODE_CLASS_MAPPINGS["TOPSToyDescribe"]
print(json.dumps({
    "title": module.NODE_DISPLAY_NAME_MAPPINGS["TOPSToyDescribe"],
    "widget": node.INPUT_TYPES()["required"]["max_tokens"],
    "result": node().describe(5),
    "nodes": len(module.NODE_CLASS_MAPPINGS),
}))
"""


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the pack with one more file."""
    pack = tmp_path_factory.mktemp("custom_nodes") / "tops"
    for name in ("nodes", "web", "tools", "tests/nodes"):
        shutil.copytree(ROOT / name, pack / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__init__.py", pack)
    shutil.copy(HERE / "toy_node.py", pack / "nodes" / "toy.py")
    return pack


def test_the_pack_offers_it(pack: Path) -> None:
    loaded = last_json(run_python("-c", LOAD, str(pack)))
    assert loaded["title"] == "TOPS Toy Describe"
    assert loaded["widget"][0] == "INT"
    assert loaded["result"] == ["tops 0.222, 5 tokens"]
    recorded = json.loads((ROOT / "nodes" / "definitions.json").read_text())
    assert loaded["nodes"] == len(recorded) + 1


def test_it_is_recorded_and_fulfils_the_contract(pack: Path) -> None:
    run_python("-m", "tools.record_nodes", path=(pack,), folder=pack)
    recorded = json.loads((pack / "nodes" / "definitions.json").read_text())
    assert recorded["TOPSToyDescribe"]["input"]["optional"]["pruning"][0] == "TOPS_PRUNING"
    others = {node_id: entry for node_id, entry in recorded.items() if node_id != "TOPSToyDescribe"}
    assert others == json.loads((ROOT / "nodes" / "definitions.json").read_text())
    assert "| `max_tokens` | INT | 256 |" in (pack / "web" / "docs" / "TOPSToyDescribe.md").read_text()
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-c", "/dev/null"]
    done = run_python(*command, "tests/nodes/test_nodes_contract.py", "-k", "Toy", path=(pack,), folder=pack)
    assert "6 passed" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('    TITLE = "TOPS Toy Describe"\n', ""), "The node Describe in toy.py has no TITLE."),
        (('"TOPSToyDescribe"', '"TOPSAsk"'), "The node Describe in toy.py has the id 'TOPSAsk', and so has Ask"),
    ],
)
def test_an_incomplete_or_second_node_is_refused(
    pack: Path, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    copy = shutil.copytree(pack, tmp_path / "tops")
    text = (HERE / "toy_node.py").read_text()
    assert change[0] in text
    (copy / "nodes" / "toy.py").write_text(text.replace(*change))
    code = "try:\n    import nodes\nexcept TypeError as error:\n    print(error)"
    assert message in run_python("-c", code, path=(copy,), folder=copy).stdout
