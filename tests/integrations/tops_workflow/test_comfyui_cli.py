"""`tops comfyui link`, and what is said where no ComfyUI is."""

import socket
import sys
from pathlib import Path

import pytest
from tops_workflow.comfyui_cli import link
from tops_workflow.comfyui_client import ComfyUIClient
from tops_workflow.pack import pack_folder

from tops_engine import cli
from tops_engine.errors import InvalidInput, TopsError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    (tmp_path / "custom_nodes").mkdir()
    return tmp_path


def test_the_pack_is_linked_and_linking_again_repairs(comfyui: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link(comfyui)
    target = comfyui / "custom_nodes" / "tops-engine"
    assert target.resolve() == pack_folder().resolve()
    assert (target / "__init__.py").is_file()
    assert (target / "workflows" / "ask_about_an_image.json").is_file()
    said = capsys.readouterr().out
    assert str(target) in said
    assert "requirements.txt" in said
    target.unlink()
    target.symlink_to(comfyui / "gone")
    link(comfyui)
    assert target.is_dir()


def test_what_is_not_ours_is_left_alone(comfyui: Path, tmp_path: Path) -> None:
    (comfyui / "custom_nodes" / "tops-engine").mkdir()
    with pytest.raises(InvalidInput, match="exists and was not made"):
        link(comfyui)
    (comfyui / "custom_nodes" / "tops-engine").rmdir()
    (comfyui / "custom_nodes" / "mine").symlink_to(pack_folder())
    with pytest.raises(InvalidInput, match="already"):
        link(comfyui)
    with pytest.raises(InvalidInput, match="custom_nodes"):
        link(tmp_path / "elsewhere")


def test_where_links_are_not_possible_the_pack_is_copied(comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("a required privilege is not held")

    monkeypatch.setattr("os.symlink", refuse)
    link(comfyui)
    target = comfyui / "custom_nodes" / "tops-engine"
    assert not target.is_symlink()
    assert (target / "nodes" / "definitions.json").is_file()


def test_no_comfyui_at_an_address_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(TopsError, match="No ComfyUI answers"):
        ComfyUIClient(address)
    with pytest.raises(InvalidInput, match="is not the address"):
        ComfyUIClient("localhost:8188")
    file = ROOT / "workflows" / "ask_about_an_image.json"
    monkeypatch.setattr(sys, "argv", ["tops", "workflow", "run", str(file), "--comfyui", address])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "No ComfyUI answers" in capsys.readouterr().err
