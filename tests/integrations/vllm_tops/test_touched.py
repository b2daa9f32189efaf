"""Test that the vLLM in this environment has every name that the plugin touches, with the recorded arguments."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from vllm_tops.versions import SUPPORTED, installed_version

from tools.record_vllm import RECORD, Sources, touched

RECORDED: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))


@pytest.mark.parametrize("release", ["0.32", "0.33"])
def test_both_releases_have_every_name_with_the_same_arguments(release: str) -> None:
    assert f"{release}.0" in SUPPORTED
    for name, entry in RECORDED.items():
        assert entry["signatures"][release] == entry["signatures"]["0.33"] is not None, name


@pytest.mark.vllm
def test_the_installed_vllm_has_every_name_with_the_recorded_arguments() -> None:
    spec, version = importlib.util.find_spec("vllm"), installed_version()
    assert spec is not None
    assert spec.origin is not None
    assert version is not None
    installed, release = Sources(Path(spec.origin).parents[1]), ".".join(version.split(".")[:2])
    recorded = {name: entry["signatures"][release] for name, entry in RECORDED.items()}
    assert {name: installed.signature(name) for name in RECORDED} == recorded


@pytest.mark.vllm
def test_every_import_is_recorded() -> None:
    assert set(touched()) == set(RECORDED), "run python -m tools.record_vllm with the unpacked wheels of releases"


def test_a_name_is_found_through_imports_and_base_classes(tmp_path: Path) -> None:
    package = tmp_path / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text("from .base import *\nfrom typing import TYPE_CHECKING\nvalue: int = 1\n")
    (package / "base.py").write_text("class Base:\n    def run(self, a, *, b=1, **rest): ...\n")
    (package / "model.py").write_text("from vllm import Base as Root\nclass Model(Root): ...\n")
    sources = Sources(tmp_path)
    assert sources.signature("vllm.model:Model") == "class"
    assert sources.signature("vllm.model:Model.run") == "(self, a, *, b, **rest)"
    assert sources.signature("vllm:value") == "value"
    assert sources.signature("vllm:Base.walk") is None
    assert sources.signature("vllm.missing:Base") is None
