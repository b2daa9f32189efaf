"""Test that exactly one module decodes picture files, and one decides which files are pictures."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
READER = ROOT / "tops_engine/media/images.py"
PRODUCT = [
    path for folder in ("tops_engine", "nodes", "integrations", "benchmarks", "docs", "tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
]  # fmt: skip

#: Modules that decode pictures as well.
OTHER_READERS = {"PIL.ImageFile", "PIL.ImageOps", "PIL.ImageSequence", "cv2", "imageio", "skimage.io", "torchvision"}

#: Where names of picture kinds may stand: the list itself, what browsers show with which media type, the thumbnails of
#: the shipped templates, and a tool that writes pictures.
KINDS_MAY_STAND_IN = {
    ROOT / "tops_engine/media/formats.py",
    ROOT / "integrations/tops_studio/files.py",
    ROOT / "integrations/tops_studio/pack_content.py",
    ROOT / "tools/draw_verification_pictures.py",
}


def decoding(source: str) -> Iterator[str]:
    """Yield each line of a module that decodes a picture file by itself."""
    tree = ast.parse(source)
    image_names = {"PIL.Image"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}": alias.asname or alias.name for alias in node.names}
            image_names |= {name for full, name in names.items() if full == "PIL.Image"}
            imported = {str(node.module), *names}
        elif isinstance(node, ast.Import):
            imported = {alias.name for alias in node.names}
            image_names |= {alias.asname for alias in node.names if alias.name == "PIL.Image" and alias.asname}
        else:
            imported = set()
        if imported & (OTHER_READERS | {"PIL.Image.open"}):
            yield ast.unparse(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "open" and ast.unparse(node.value) in image_names:
            yield ast.unparse(node)


@pytest.mark.parametrize(
    "source",
    [
        "from PIL import Image\nImage.open(path)",
        "from PIL import Image as I\nwith I.open(path) as i: pass",
        "import PIL.Image\nPIL.Image.open(path)",
        "import PIL.Image as I\nread = I.open",
        "from PIL.Image import open",
        "def f():\n    from PIL import ImageSequence",
        "import cv2",
    ],
)
def test_every_way_of_decoding_is_noticed(source: str) -> None:
    assert list(decoding(source))


def test_only_the_reader_decodes_pictures() -> None:
    assert len(PRODUCT) > 150
    found = {path: lines for path in PRODUCT if path != READER and (lines := list(decoding(path.read_text())))}
    assert not found
    assert list(decoding(READER.read_text()))


def test_only_one_list_says_what_a_picture_is() -> None:
    for path in PRODUCT:
        if path not in KINDS_MAY_STAND_IN:
            constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            assert not {".jpg", ".jpeg", "*.jpg"} & constants, path
