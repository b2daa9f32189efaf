"""Test TOPS Boxes on answers with boxes and points, called as a graph calls it."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from nodes.models import TopsModel
from tests.nodes.conftest import ask, node
from tests.support.checkpoints_qwen import save_qwen3_vl
from tops_engine.errors import InvalidInput
from tops_engine.settings import ModelSpec, Pruning


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> TopsModel:
    """A model whose coordinates are 0 to 1000 over the whole side."""
    return TopsModel(ModelSpec(model=str(save_qwen3_vl(tmp_path_factory.mktemp("finder"))), device="cpu"))


def find(finder: TopsModel, image: Tensor, **objects: Any) -> Any:
    """Return the outputs of TOPS Boxes for an answer that can only name the given objects."""
    one = {"type": "object", "properties": {name: {"const": value} for name, value in objects.items()}}
    schema = json.dumps(one | {"required": list(objects), "additionalProperties": False})
    name = next(iter(objects))
    stats = node("TOPSStructured").ask(finder, "Find it.", schema, name, 200, 0.0, 0, image, Pruning(keep=0.3))
    return node("TOPSBoxes").read(stats["result"][3], 0)


def test_boxes_are_a_mask_and_bounding_boxes_and_drawn(finder: TopsModel) -> None:
    white = torch.ones(1, 100, 200, 3)
    image, mask, bboxes, box, points, report = find(finder, white, bbox_2d=[100, 200, 300, 600], label="cat")
    assert bboxes == [[{"x": 20, "y": 20, "width": 40, "height": 40, "label": "cat"}]]
    assert box == bboxes[0][0]
    assert mask.shape == (1, 100, 200)
    assert mask[0, 20:60, 20:60].min() == 1
    assert mask.sum() == 40 * 40
    assert image.shape == white.shape
    # The frame is drawn, and nothing but it and the label.
    assert (image[0, 20:60, 20] != 1).any(dim=-1).all()
    assert (image[0, 62:] == 1).all()
    assert points == "[]"
    assert report == "cat: 20, 20 to 60, 60 (picture 0)"


def test_points_are_what_sam_reads(finder: TopsModel) -> None:
    white = torch.ones(1, 100, 200, 3)
    image, mask, bboxes, box, points, report = find(finder, white, point_2d=[500, 500], label="nose")
    assert json.loads(points) == [{"label": "nose", "picture": 0, "x": 100.0, "y": 50.0}]
    assert mask[0, 50, 100] == 1
    assert 0 < mask.sum() < 100
    assert (image != white).any()
    assert (bboxes, box) == ([[]], {"x": 0, "y": 0, "width": 200, "height": 100, "label": ""})
    assert report == "nose: 100, 50 (picture 0)"


def test_boxes_of_an_answer_without_any(model: TopsModel, photo: Tensor) -> None:
    stats = ask(model, image=torch.cat([photo, photo]))["result"][3]
    image, mask, bboxes, _, points, report = node("TOPSBoxes").read(stats, 0)
    assert torch.allclose(image, torch.cat([photo, photo]), atol=1 / 255)
    assert mask.shape == (2, *photo.shape[1:3])
    assert (mask.sum(), bboxes, points) == (0, [[], []], "[]")
    assert "no boxes" in report
    with pytest.raises(InvalidInput, match="There is no answer 3"):
        node("TOPSBoxes").read(stats, 0, 3)
    with pytest.raises(InvalidInput, match="There is no picture"):
        node("TOPSBoxes").read(ask(model, "Hello")["result"][3], 0)
