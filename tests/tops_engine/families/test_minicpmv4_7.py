"""Test MiniCPM-V 4.7: the positions of the picture and its slices in 3-D, and that tokens lie where these say."""

from pathlib import Path

import pytest
import torch

from tests.conftest import Picture
from tests.support.checkpoints_minicpm import save_minicpmv4_7
from tests.support.slow_reference import model_text_inputs
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.dependencies import unsupported_version
from tops_engine.engine import Engine
from tops_engine.families.minicpmv4_7 import MiniCPMV47
from tops_engine.settings import ModelSpec

pytestmark = pytest.mark.skipif(
    bool(unsupported_version(f"transformers>={MiniCPMV47.oldest_transformers}")), reason="needs a newer transformers"
)


def test_positions_are_the_models_and_say_where_a_token_lies(tmp_path: Path, picture: Picture) -> None:
    family = Engine.load(ModelSpec(model=str(save_minicpmv4_7(tmp_path)), device="cpu")).family
    prompt = family.prepare(read_conversation([user_message("What?", picture(150, 80, 1), picture(80, 160, 2))]))
    assert torch.equal(prompt.position_ids, model_text_inputs(family, prompt).positions[:, 0])
    for span in prompt.spans:
        layout, (_, rows, columns) = span.layout, prompt.position_ids[:, span.positions]
        slices = layout.view == 1
        down, across = layout.grids[1]
        origin = prompt.position_ids[0, span.positions[0]]
        boxes = layout.boxes[slices]
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2 * torch.tensor([across, down]) - 0.5
        torch.testing.assert_close(middles, torch.stack([columns, rows], dim=1)[slices].float() - origin)
