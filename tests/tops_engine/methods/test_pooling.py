"""Test pooling per view of a picture."""

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import Picture
from tests.support.visual_tokens import random_tokens
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import UnsupportedModel
from tops_engine.media.layout import VisualLayout, frame_layout, grid_boxes
from tops_engine.methods import VisualTokens
from tops_engine.methods.pooling import Pooling
from tops_engine.settings import Generation, Pruning


def picture_of(layout: VisualLayout, seed: int = 0) -> VisualTokens:
    torch.manual_seed(seed)
    return VisualTokens(torch.randn(layout.num_tokens, 3), layout, lambda: torch.empty(0), lambda: torch.empty(0))


def test_a_picture_is_pooled_to_exactly_the_budget() -> None:
    image = picture_of(VisualLayout(grid_boxes(24, 24), torch.zeros(576).long(), ((24, 24),)))
    (selection,) = Pooling().select_visual([image], [128])
    expected = F.adaptive_avg_pool2d(image.features.T.view(3, 24, 24), (8, 16)).flatten(1).T
    torch.testing.assert_close(selection.features, expected)
    assert selection.indices[:2].tolist() == [24, 25], "rows 0 to 2; columns 0 and 1, then 1 and 2"


def test_each_view_is_pooled_by_itself_and_newlines_are_dropped() -> None:
    # An overview of 2 x 2 and a map of 4 x 4, each row of it with a newline token behind.
    boxes = torch.zeros(4, 5, 4)
    boxes[:, :4] = grid_boxes(4, 4).view(4, 4, 4)
    layout = VisualLayout(
        torch.cat([grid_boxes(2, 2), boxes.flatten(0, 1)]), torch.tensor([0] * 4 + [1] * 20), ((2, 2), (4, 4))
    )
    image = picture_of(layout)
    (selection,) = Pooling().select_visual([image], [5])
    grid = image.features[4:].view(4, 5, 3)[:, :4]
    expected = [image.features[:4].mean(dim=0)]
    expected += [grid[row : row + 2, column : column + 2].mean(dim=(0, 1)) for row in (0, 2) for column in (0, 2)]
    torch.testing.assert_close(selection.features, torch.stack(expected))
    assert selection.indices.tolist() == [0, 4, 6, 14, 16]
    (most,) = Pooling().select_visual([image], [22])
    assert most.features is not None
    assert len(most.indices) == len(most.features) == 22
    torch.testing.assert_close(most.features, image.features[most.indices])
    assert set(range(24)) - set(most.indices.tolist()) == {18, 23}, "the last newlines go first"


def test_tiles_that_follow_each_other_are_pooled_as_the_picture_they_show() -> None:
    halves = [grid_boxes(2, 2, (0.0, 0.0, 0.5, 1.0)), grid_boxes(2, 2, (0.5, 0.0, 1.0, 1.0))]
    image = picture_of(VisualLayout(torch.cat(halves), torch.zeros(8).long(), ((2, 4),)))
    (selection,) = Pooling().select_visual([image], [2])
    expected = torch.stack([image.features[:4].mean(dim=0), image.features[4:].mean(dim=0)])
    torch.testing.assert_close(selection.features, expected)
    (selection,) = Pooling().select_visual([image], [8])
    torch.testing.assert_close(selection.features, image.features)


def test_each_frame_of_a_video_is_pooled_by_itself() -> None:
    image = picture_of(frame_layout(3, grid_boxes(2, 2), (2, 2)))
    (selection,) = Pooling().select_visual([image], [3])
    torch.testing.assert_close(selection.features, image.features.view(3, 4, 3).mean(dim=1))
    assert selection.indices.tolist() == [0, 4, 8]


def test_a_picture_without_a_full_grid_is_refused() -> None:
    image = picture_of(VisualLayout(grid_boxes(2, 3), torch.zeros(6).long(), ((2, 2),)))
    with pytest.raises(UnsupportedModel, match="a grid of 2 x 2 has 6 tokens"):
        Pooling().select_visual([image], [2])


def test_the_language_model_sees_the_means(llava_engine: Engine, picture: Picture) -> None:
    family = llava_engine.family
    messages = [user_message("What?", picture(60, 60))]
    ((tokens,),) = family.encode([family.prepare(read_conversation(messages))])
    seen: list[torch.Tensor] = []
    layer = family.decoder.text_model.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    answer = llava_engine.chat(messages, Pruning(method="pooling", keep=0.25), Generation(max_tokens=1))
    handle.remove()
    means = tokens.features.view(2, 2, 2, 2, -1).mean(dim=(1, 3)).flatten(0, 1)
    first = int(family.prepare(read_conversation(messages)).spans[0].positions[0])
    torch.testing.assert_close(seen[0][0, first : first + 4], means, atol=1e-5, rtol=1e-5)
    assert answer.usage.layer_average == 4


def test_half_precision_stays() -> None:
    image = random_tokens([6])
    half = VisualTokens(image.features.bfloat16(), image.layout, image.encoder_features, image.vision_attention)
    (selection,) = Pooling().select_visual([half], [2])
    assert selection.features is not None
    assert selection.features.dtype == torch.bfloat16
