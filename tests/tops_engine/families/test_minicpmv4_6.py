"""Test MiniCPM-V 4.6: the picture and its slices, frames, the signals of its merging tower, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Picture
from tests.support.checkpoints_minicpm import PATCH_SIZE, save_minicpmv4_6
from tests.support.slow_reference import model_inputs_embeds
from tops_engine.conversation.messages import read_conversation, user_message, video_message
from tops_engine.dependencies import unsupported_version
from tops_engine.engine import Engine
from tops_engine.errors import MissingDependency, UnsupportedModel
from tops_engine.families import Family, Prompt
from tops_engine.families.minicpmv4_6 import MiniCPMV46
from tops_engine.families.parts.vision_signals import captured_calls
from tops_engine.settings import ModelSpec

pytestmark = pytest.mark.skipif(
    bool(unsupported_version(f"transformers>={MiniCPMV46.oldest_transformers}")), reason="needs a newer transformers"
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = save_minicpmv4_6(tmp_path_factory.mktemp("minicpm"))
    return Engine.load(ModelSpec(model=str(folder), device="cpu"))


def prepare(family: Family, *pictures: Any) -> Prompt:
    return family.prepare(read_conversation([user_message("What is this?", *pictures)]))


def test_the_whole_picture_and_then_its_slices_stand_in_the_text(engine: Engine, picture: Picture) -> None:
    prompt = prepare(engine.family, picture(40, 50), picture(150, 80))
    first, second = (span.layout for span in prompt.spans)
    assert first.grids == ((2, 2),)
    assert second.grids == ((1, 3), (2, 4))
    assert second.view.tolist() == [0] * 3 + [1] * 8
    text = engine.family.tokenizer.decode(prompt.input_ids).replace("<|image_pad|>", ".")
    assert "<image_id>0</image_id><image>....</image>\n<image_id>1</image_id><image>...</image>" in text
    assert "</image><slice>....</slice><slice>....</slice>\nWhat is this?" in text


def test_features_and_signals_are_those_of_the_tower(engine: Engine, picture: Picture) -> None:
    family = engine.family
    prompt = prepare(family, picture(150, 80, 1), picture(40, 50, 2))
    embeds = model_inputs_embeds(family, prompt)[0]
    attention = family.model.model.vision_tower.encoder.layers[-1].self_attn
    with torch.inference_mode(), captured_calls(attention.q_proj, attention.k_proj) as (queries, keys):
        (encoded,) = family.encode([prompt])
        features = [tokens.project(tokens.encoder_features()) for tokens in encoded]
        attention = torch.cat([tokens.vision_attention() for tokens in encoded])
    received, first = [], 0
    for rows, columns in (prompt.pixels["target_sizes"] // 2).tolist():
        # Each of 2 heads has 16 values; the layer sees 2 x 2 patches as one, and a token is 2 x 2 of these.
        part = slice(first, first + rows * columns)
        query, key = (call.output[0, part].view(-1, 2, 16).transpose(0, 1) for call in (queries, keys))
        scores = (query @ key.transpose(1, 2) / 4).softmax(dim=-1).mean(dim=(0, 1))
        received.append(scores.view(rows // 2, 2, columns // 2, 2).mean(dim=(1, 3)).flatten())
        first += rows * columns
    torch.testing.assert_close(attention, torch.cat(received))
    for tokens, projected, span in zip(encoded, features, prompt.spans, strict=True):
        torch.testing.assert_close(tokens.features, embeds[span.positions], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(projected, tokens.features)
        assert len(set(tokens.tiles().tolist())) == 1 + (len(span.layout.grids) == 2) * 2


def test_the_flops_of_the_tower_are_those_that_torch_counts(engine: Engine, picture: Picture) -> None:
    prompt = prepare(engine.family, picture(150, 80, 1), picture(40, 50, 2))
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        engine.family.project([prompt])
    assert counter.get_total_flops() == engine.family.vision_flops(prompt)


def test_a_frame_is_seen_whole(engine: Engine, picture: Picture) -> None:
    family = engine.family
    frames = [picture(64, 64, seed) for seed in range(3)]
    prompt = family.prepare(read_conversation([video_message("What happens?", frames, fps=1.0)]))
    (layout,) = (span.layout for span in prompt.spans)
    assert (layout.grids, layout.num_tokens) == (((2, 2),), 12)
    assert layout.frame is not None
    assert layout.frame.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert family.tokenizer.decode(prompt.input_ids).count(f"<image>{'<|video_pad|>' * 4}</image>") == 3
    values = prompt.pixels["pixel_values_videos"][0].view(3, PATCH_SIZE, 3, 8, 8, PATCH_SIZE)
    pixels = torch.from_numpy(np.stack([np.array(frame) for frame in frames])).float() / 127.5 - 1
    shown = values.permute(2, 3, 1, 4, 5, 0).reshape(3, 64, 64, 3)
    torch.testing.assert_close(shown, pixels, atol=1e-6, rtol=1e-5)


def test_an_older_transformers_is_refused_in_one_sentence(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(MiniCPMV46, "oldest_transformers", "99.0")
    save_minicpmv4_6(tmp_path)
    with pytest.raises(MissingDependency, match=r"needs transformers>=99\.0, and this Python has transformers 5\."):
        Engine.load(ModelSpec(model=str(tmp_path), device="cpu"))


def test_other_mergers_are_refused(tmp_path: Path) -> None:
    folder = save_minicpmv4_6(tmp_path, merger_times=2)
    with pytest.raises(UnsupportedModel, match="merges patches 2 times behind its vision tower; supported is once"):
        Engine.load(ModelSpec(model=str(folder), device="cpu"))
