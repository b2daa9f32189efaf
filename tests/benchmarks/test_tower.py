"""The benchmark of vision towers finds equal patches, and states the FLOPs of the published tower."""

import pytest
import torch

from benchmarks import tower
from benchmarks.published_sizes import SIZES
from benchmarks.shapes import build
from benchmarks.tower import narrow_tower, share
from benchmarks.tower_pictures import receipts
from tops_engine.conversation.messages import read_conversation, user_message


@pytest.mark.full
def test_receipts_repeat_most_of_their_patches() -> None:
    name = "qwen2.5-vl-7b"
    family, published = (
        build(narrow_tower(SIZES[name]), "cpu", torch.float32),
        build(SIZES[name], "meta", torch.float32),
    )
    asked = [read_conversation([user_message("What?", *receipts(1))])]
    exact = share(family, published, asked, "exact")
    approximate = share(family, published, asked, "patches")
    assert exact["encoded"] == exact["patches"]
    assert exact["relative_error"] == exact["saved_flops"] == 0
    assert approximate["encoded"] < approximate["patches"] / 2
    assert 0.5 < approximate["saved_flops"] / approximate["flops"] < 1
    assert approximate["relative_error"] > 0


@pytest.mark.full
def test_an_answer_about_a_video_is_timed_with_few_layers_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    small = narrow_tower(SIZES["qwen2.5-vl-7b"])
    monkeypatch.setitem(tower.TIMED_SIZES, "small", lambda: small)
    (rows,) = tower.times("small", ["moving camera"], torch.float32, 1, 2, text_layers=1, frames=4)
    assert [row["side"] for row in rows] == list(tower.SIDES)
    assert {row["shape"] for row in rows} == {"small, 1 layers of text"}
    assert {row["kind"] for row in rows} == {"moving camera, 4 frames"}
    assert all(row["seconds"][part] > 0 for row in rows for part in ("prepare", "vision", "prefill", "decode"))
