"""Fixtures everything shares: small random checkpoints saved once, engines on them, and pictures.

The fixtures import torch and transformers, not this module: the process that distributes the tests needs neither.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from tops_engine import cli
from tops_engine.cli import output
from tops_engine.settings import ModelSpec

if TYPE_CHECKING:
    from tops_engine.engine import Engine

Picture = Callable[..., Image.Image]

# A busy machine is not a failure.
settings.register_profile("tops", deadline=None)
settings.load_profile("tops")


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-1.5 checkpoint: 16 visual tokens a picture, 8 layers; it brings its CLIP along."""
    from tests.support.checkpoints import save_llava
    from tests.support.checkpoints_clip import save_clip

    folder = save_llava(tmp_path_factory.mktemp("checkpoints") / "llava")
    save_clip(folder / "clip")
    return folder


@pytest.fixture(scope="session")
def llava_next_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-NeXT checkpoint with the same sizes."""
    from tests.support.checkpoints import save_llava_next
    from tests.support.checkpoints_clip import save_clip

    folder = save_llava_next(tmp_path_factory.mktemp("checkpoints") / "llava-next")
    save_clip(folder / "clip")
    return folder


@pytest.fixture(scope="session")
def llava_engine(llava_folder: Path) -> "Engine":
    from tops_engine.engine import Engine

    return Engine.load(ModelSpec(model=str(llava_folder), device="cpu"))


@pytest.fixture(scope="session")
def llava_next_engine(llava_next_folder: Path) -> "Engine":
    from tops_engine.engine import Engine

    return Engine.load(ModelSpec(model=str(llava_next_folder), device="cpu"))


@pytest.fixture(scope="session")
def picture() -> Picture:
    """Makes pictures of random pixels: ``picture(width, height, seed)``."""

    def make(width: int = 56, height: int = 56, seed: int = 0) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


class Result(NamedTuple):
    code: int
    out: str
    err: str


Tops = Callable[..., Result]


@pytest.fixture
def tops(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Tops]:
    """Runs the command in this process, which has torch loaded already."""
    monkeypatch.setenv("TERMINAL_WIDTH", "160")
    monkeypatch.setattr(output.out, "width", 160)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["tops", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return Result(int(exit.value.code or 0), *capsys.readouterr())

    handler = signal.getsignal(signal.SIGINT)
    yield run
    signal.signal(signal.SIGINT, handler)
