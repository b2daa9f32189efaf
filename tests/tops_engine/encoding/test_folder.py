"""Test `tops encode`: what it writes, continues and refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Picture, Tops
from tops_engine.encoding.kept_tokens import kept_tokens
from tops_engine.engine import shared_engine
from tops_engine.media.images import open_image
from tops_engine.settings import ModelSpec, Pruning

NAMES = ["a/deep/x.webp", "a/y.JPG", "b.png"]


@pytest.fixture
def folder(tmp_path: Path, picture: Picture) -> Path:
    folder = tmp_path / "pictures"
    (folder / "a" / "deep").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        picture(60 + 9 * seed, 50, seed).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "encoded.jsonl").read_text().splitlines()]


def command(folder: Path, output: Path, *more: object) -> list[object]:
    return ["encode", folder, "-o", output, "--model", "mini", "--device", "cpu", "--keep", "0.222", *more]


def test_each_picture_gets_a_file_that_vllm_takes(tops: Tops, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "encoded"
    result = tops(*command(folder, output, "--batch-size", 2))
    assert result.code == 0, result.err
    assert "3 encoded in" in result.err
    header, *found = lines(output)
    assert (header["model"], header["hidden_size"], header["dtype"]) == ("mini", 160, "float32")
    assert [line["picture"] for line in found] == NAMES
    family = shared_engine(ModelSpec(model="mini", device="cpu")).family
    pruning = Pruning(keep=0.222, stages="first")
    for line in found:
        path = output / line["file"]
        assert (line["kept"], line["unpruned"], line["bytes"]) == (32, 144, path.stat().st_size)
        (expected,) = kept_tokens(family, [open_image(folder / line["picture"])], pruning)
        assert torch.equal(torch.load(path, weights_only=True), expected.features)


def test_a_run_continues_where_files_are_missing(tops: Tops, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "encoded"
    (folder / "a" / "broken.png").write_bytes(b"no picture")
    failed = tops(*command(folder, output))
    assert failed.code == 1
    assert "1 picture was not encoded" in failed.err
    assert "error" in lines(output)[1]
    (folder / "a" / "broken.png").unlink()
    (output / "b.png.pt").unlink()
    again = tops(*command(folder, output))
    assert again.code == 0, again.err
    assert "1 encoded in" in again.err
    assert "2 encoded before" in again.err
    assert "all 3 pictures are encoded" in tops(*command(folder, output)).err
    other = tops("encode", folder, "-o", output, "--model", "mini", "--device", "cpu", "--keep", "0.5")
    assert other.code == 1
    assert "holds the results of another run (different: pruning)" in other.err
