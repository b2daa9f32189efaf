"""Options that are an object with a file: one mechanism for every method and surface."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from langchain_tops import ChatTOPSLlava
from pydantic import Field

import nodes
from tops_engine.cli.options import read_options
from tops_engine.errors import InvalidInput
from tops_engine.methods import METHODS, Method, Selection, VisualTokens
from tops_engine.methods.file_option import FileOption, names_file
from tops_engine.remote.pruning import read_metrics
from tops_engine.settings import Pruning, pruning_fields
from tops_engine.settings.pruning_file import options_from_json


class Table(FileOption):
    """A table of a test."""

    kind: ClassVar[str] = "table"
    made_by: ClassVar[str] = "a test"

    title: str
    rows: tuple[int, ...] = Field(min_length=1)

    @property
    def label(self) -> str:
        return self.title

    def settings(self) -> dict[str, Any]:
        return {"method": "by_table", "keep": 0.25}


@pytest.fixture(autouse=True)
def by_table() -> Iterator[None]:
    class ByTable(Method):
        """Keep the tokens that a table names."""

        name = "by_table"
        source = "a test"

        table: Table | None = None

        def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
            raise NotImplementedError

    yield
    METHODS.remove("by_table")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mine.json"
    Table(title="mine", rows=(1, 2)).save(path)
    return path


def test_it_is_read_from_a_file_from_json_and_as_an_object(path: Path) -> None:
    table = Table(title="mine", rows=(1, 2))
    for source in (path, str(path), json.loads(path.read_text()), table):
        pruning = Pruning(table=source)
        # It brings its method and its budget.
        assert (pruning.method, pruning.keep) == ("by_table", 0.25)
        assert pruning.method_instance == METHODS["by_table"].model_validate({"table": table})
        assert Pruning(**json.loads(pruning.model_dump_json())).method_instance == pruning.method_instance
    assert Pruning(table=path, keep=0.5).keep == 0.5
    assert Pruning(method="by_table").method_instance == METHODS["by_table"]()


def test_a_label_names_the_file_or_the_object(path: Path) -> None:
    assert Pruning(table=path).label == f"by_table:table={path}"
    assert Pruning.from_label(f"by_table:table={path}", 0.4).method_instance == Pruning(table=path).method_instance
    assert Pruning(table=Table(title="mine", rows=(1,))).label == "by_table:table=mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"The table .* cannot be read: No such file"),
        ("{", "is not a table: it is not JSON"),
        ("[]", "is not a table that this version reads: .*; make one with `a test`"),
        ('{"title": "x", "rows": []}', "rows: Tuple should have at least 1 item"),
    ],
)
def test_what_is_no_such_object_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "other.json"
    if text is not None:
        path.write_text(text)
    for make in (lambda: Pruning(table=path), lambda: Table.read(path)):
        with pytest.raises(InvalidInput, match=message):
            make()


def test_a_file_of_options_may_hold_the_object_alone(path: Path) -> None:
    assert Pruning(**read_options(path)).method_instance == Pruning(table=path).method_instance
    assert options_from_json('{"method": "tops", "keep": 0.3}', "It") == {"method": "tops", "keep": 0.3}
    for text in ("{", "[]"):
        with pytest.raises(InvalidInput, match="It "):
            options_from_json(text, "It")


def test_the_chat_model_takes_it_in_the_constructor_and_for_one_call(path: Path) -> None:
    chat = ChatTOPSLlava(model="mini", device="cpu", table=str(path))
    assert (chat.method, chat.keep) == ("by_table", 0.25)
    options = ChatTOPSLlava(model="mini", device="cpu")._options({"table": str(path)})
    assert (options["method"], options["keep"]) == ("by_table", 0.25)


def test_workflows_and_servers_name_no_files(path: Path) -> None:
    assert {name for name, (field, _) in pruning_fields().items() if names_file(field)} == {"clip", "recipe", "table"}
    settings = nodes.NODE_CLASS_MAPPINGS["TOPSPruning"]
    assert "options take no table" in settings.VALIDATE_INPUTS("by_table", 0.5, f"table={path}")
    compare = nodes.NODE_CLASS_MAPPINGS["TOPSCompare"]
    assert "takes no table files" in compare.VALIDATE_INPUTS(f"by_table:table={path}", "0.2")
    assert read_metrics(f'tops_pruning_info{{keep="0.5",method="by_table",table="{path}"}} 1.0\n') == Pruning(
        method="by_table", keep=0.5
    )
