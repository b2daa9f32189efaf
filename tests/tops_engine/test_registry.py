"""Test the registry: what it refuses, and plugins by entry point, by module name and by path."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tops_engine.cli.ask
from tops_engine.cli.app import COMMANDS, app
from tops_engine.families import FAMILIES, Family
from tops_engine.methods import METHODS, Method
from tops_engine.registry import PLUGINS_VARIABLE, Registry

METHOD = '''
from tops_engine.methods import Method

class {name}(Method):
    """Keep every token."""

    name = "{name}"
    source = "a test"
'''


def define(base: type, title: str, docstring: str | None = "A class of a test.", **attributes: Any) -> type:
    return type(title, (base,), attributes | {"__doc__": docstring, "__module__": __name__})


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"source": "x"}, "The method Bad has no name."),
        ({"name": "bad", "source": "x", "docstring": None}, "The method Bad has no docstring."),
        ({"docstring": None}, "The method Bad has no name and no docstring and no source."),
        ({"name": "tops", "source": "x"}, "The method Bad is called 'tops', and so is tops_engine.methods.tops.TOPS"),
    ],
)
def test_an_incomplete_or_second_method_is_refused(attributes: dict[str, Any], message: str) -> None:
    before = dict(METHODS)
    with pytest.raises(TypeError, match=message):
        define(Method, "Bad", **attributes)
    assert dict(METHODS) == before


def test_a_subclass_of_a_method_needs_a_name_of_its_own() -> None:
    with pytest.raises(TypeError, match="The method Bad has no name"):
        define(METHODS["tops"], "Bad")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"checkpoints": {"bad": ("a/b",)}}, "The family Bad has no name"),
        ({"model_types": ("bad",)}, "The family Bad has no checkpoints."),
        ({"model_types": ("bad", "worse"), "checkpoints": {"bad": ("a/b",)}}, "The family Bad has no checkpoints."),
        ({"model_types": ("bad",), "checkpoints": {"bad": ()}}, "The family Bad has no checkpoints."),
        ({"model_types": ("bad",), "checkpoints": {"bad": ("a/b",)}, "docstring": None}, "has no docstring"),
        ({"model_types": ("llava",), "checkpoints": {"llava": ("a/b",)}}, "is called 'llava', and so is"),
    ],
)
@pytest.mark.parametrize("base", [Family, FAMILIES["llava"]])
def test_an_incomplete_or_second_family_is_refused(base: type, attributes: dict[str, Any], message: str) -> None:
    before = dict(FAMILIES)
    with pytest.raises(TypeError, match=message):
        define(base, "Bad", **attributes)
    assert dict(FAMILIES) == before


def test_a_second_command_or_one_without_help_is_refused() -> None:
    def ask() -> None:
        """Ask."""

    def silent() -> None:
        pass

    assert COMMANDS["ask"].__module__ == tops_engine.cli.ask.__name__
    with pytest.raises(TypeError, match=r"is called 'ask', and so is tops_engine\.cli\.ask\.ask; rename it"):
        app.command()(ask)
    with pytest.raises(TypeError, match="has no docstring"):
        app.command()(silent)


def test_a_base_class_is_not_registered() -> None:
    before = dict(METHODS)

    class Base(Method, register=False):
        pass

    assert dict(METHODS) == before
    assert Base().prunes_before_the_llm is False


@pytest.fixture
def registry() -> Registry[type[Any]]:
    return Registry("thing", "tops_engine.things")


def test_the_same_class_may_be_defined_again(registry: Registry[type[Any]]) -> None:
    first, second = define(object, "Thing"), define(object, "Thing")
    registry.add(first, ["thing"])
    registry.add(second, ["thing"])
    assert registry["thing"] is second


def test_entries_are_read_in_the_order_of_their_names(registry: Registry[type[Any]]) -> None:
    thing = define(object, "Thing")
    for name in ("b", "c", "a"):
        registry.add(thing, [name])
    assert list(registry) == ["a", "b", "c"]
    registry.remove("b")
    assert list(registry.items()) == [("a", thing), ("c", thing)]
    assert "b" not in registry
    with pytest.raises(KeyError):
        registry.remove("b")


def run(code: str, folder: Path, plugins: str = "") -> "subprocess.CompletedProcess[str]":
    """Run Python with the folder on its path."""
    environment = {"PYTHONPATH": ":".join([str(folder), *sys.path]), PLUGINS_VARIABLE: plugins, "COLUMNS": "160"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)


def write_package(folder: Path, name: str, text: str, group: str = "tops_engine.methods") -> None:
    """Write a module and the metadata of an installed package that declares it as an entry point."""
    (folder / f"{name}.py").write_text(text)
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\nany = {name}\n")


ALL_METHODS = "from tops_engine.methods import METHODS; print(*METHODS)"


def test_plugins_join_by_entry_point_by_module_name_and_by_path(tmp_path: Path) -> None:
    write_package(tmp_path, "packaged", METHOD.format(name="packaged"))
    (tmp_path / "importable.py").write_text(METHOD.format(name="importable"))
    elsewhere = tmp_path / "some.where" / "of a user.py"
    elsewhere.parent.mkdir()
    elsewhere.write_text(METHOD.format(name="own"))
    done = run(ALL_METHODS, tmp_path, f"importable, {elsewhere},")
    assert {"packaged", "importable", "own", "tops"} <= set(done.stdout.split())
    assert done.stderr == ""


@pytest.mark.parametrize("code", [ALL_METHODS, "from tops_engine import Pruning; print(Pruning(method='tops').method)"])
def test_a_plugin_that_fails_gives_one_warning_and_is_left_out(tmp_path: Path, code: str) -> None:
    write_package(tmp_path, "packaged", "import a_package_that_is_not_there")
    twin = tmp_path / "twin.py"
    twin.write_text(METHOD.format(name="tops"))
    done = run(code, tmp_path, f"{twin},{tmp_path}/missing.py,not_a_module")
    assert "tops" in done.stdout.split()
    warnings = [line for line in done.stderr.splitlines() if "UserWarning" in line]
    assert len(warnings) == 4
    package, second, path, module = warnings
    assert "The plugin packaged (of the package packaged) cannot be imported and is left out" in package
    assert "ModuleNotFoundError: No module named 'a_package_that_is_not_there'" in package
    assert f"{twin} (from TOPS_PLUGINS)" in second
    assert "and so is tops_engine.methods.tops.TOPS; rename it" in second
    assert "FileNotFoundError" in path
    assert "No module named 'not_a_module'" in module


def test_a_plugin_may_read_the_registry_and_define_several_things(tmp_path: Path) -> None:
    text = "from tops_engine import Pruning\nPruning(method='random')\n" + METHOD.format(name="own")
    text += (
        "from tops_engine.cli.app import app\n@app.command()\ndef hello() -> None:\n    'Say hello.'\n    print('hi')\n"
    )
    path = tmp_path / "own.py"
    path.write_text(text)
    assert "own" in run(ALL_METHODS, tmp_path, str(path)).stdout.split()
    code = "import sys; from tops_engine.cli import main; sys.argv = ['tops', 'hello']; main()"
    assert run(code, tmp_path, str(path)).stdout == "hi\n"


def test_a_broken_command_leaves_the_command_line_whole(tmp_path: Path) -> None:
    write_package(tmp_path, "broken", "raise RuntimeError('no luck')", "tops_engine.commands")
    write_package(
        tmp_path,
        "second",
        "from tops_engine.cli.app import app\n@app.command()\ndef models(): 'Twin.'",
        "tops_engine.commands",
    )
    code = "import sys; from tops_engine.cli import main; sys.argv = ['tops', 'doctor']; main()"
    done = run(code, tmp_path)
    assert "transformers" in done.stdout
    assert done.stderr.splitlines() == [
        "Warning: The plugin broken (of the package broken) cannot be imported and is left out: RuntimeError: no luck",
        "Warning: The plugin second (of the package second) cannot be imported and is left out: TypeError: The command "
        "models is called 'models', and so is tops_engine.cli.models.models; rename it.",
    ]
