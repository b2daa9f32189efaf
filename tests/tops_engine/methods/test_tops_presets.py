"""Test that the presets of TOPS are the paper's tables and that other methods can run them."""

import pytest

from tops_engine.methods import METHODS
from tops_engine.methods.tops_presets import PRESETS
from tops_engine.settings import presets

# The reference's tables 9 and 10: model/budget -> tokens before the LLM, and at which layer how many remain.
PAPER_TABLES = {
    "llava-1.5-7b/128": ((0, 256), (12, 128), (24, 32)),
    "llava-1.5-7b/64": ((0, 128), (12, 64), (24, 16)),
    "llava-1.5-7b/32": ((0, 64), (12, 32), (24, 8)),
    "llava-1.5-13b/128": ((0, 256), (15, 128), (30, 32)),
    "llava-1.5-13b/64": ((0, 128), (15, 64), (30, 16)),
    "llava-1.5-13b/32": ((0, 64), (15, 32), (30, 8)),
    "llava-next-7b/640": ((0, 1280), (12, 640), (24, 160)),
    "llava-next-7b/320": ((0, 640), (12, 320), (24, 80)),
    "llava-next-7b/160": ((0, 320), (12, 160), (24, 40)),
    "llava-next-13b/640": ((0, 1280), (15, 640), (30, 160)),
    "llava-next-13b/320": ((0, 640), (15, 320), (30, 80)),
    "llava-next-13b/160": ((0, 320), (15, 160), (30, 40)),
    "qwen2.5-vl-7b/256": ((0, 512), (12, 281), (16, 77)),
    "qwen2.5-vl-7b/128": ((0, 256), (12, 139), (16, 39)),
    "qwen2.5-vl-7b/64": ((0, 128), (12, 71), (16, 19)),
    "internvl3-8b/256": ((0, 512), (12, 281), (16, 77)),
    "internvl3-8b/128": ((0, 256), (12, 139), (16, 39)),
    "internvl3-8b/64": ((0, 128), (12, 71), (16, 19)),
    # Table 17's counts for the first row, which are the only ones that average 128.
    "llava-1.5-7b/128-table17": ((0, 256), (12, 64), (24, 32)),
}


def test_presets_are_the_papers_tables() -> None:
    assert {name: preset.stages for name, preset in PRESETS.items()} == PAPER_TABLES


@pytest.mark.parametrize(
    ("name", "average"),
    [
        ("llava-1.5-7b/128", (12 * 256 + 12 * 128 + 8 * 32) / 32),  # 152
        ("llava-1.5-7b/128-table17", 128),
        ("llava-1.5-13b/128", (15 * 256 + 15 * 128 + 10 * 32) / 40),  # 152
        ("qwen2.5-vl-7b/256", (12 * 512 + 4 * 281 + 12 * 77) / 28),  # 292.6
        ("internvl3-8b/128", (12 * 256 + 4 * 139 + 12 * 39) / 28),
    ],
)
def test_presets_report_their_true_average_not_the_one_the_paper_claims(name: str, average: float) -> None:
    assert PRESETS[name].layer_average == average


def test_presets_have_the_papers_weights() -> None:
    weights = {name: (preset.options["alpha"], preset.options["lambda"]) for name, preset in PRESETS.items()}

    assert weights["llava-1.5-7b/128"] == weights["llava-1.5-7b/128-table17"] == (0.5, 0.5)
    assert weights["llava-1.5-7b/64"] == weights["llava-1.5-7b/32"] == (0.5, 1.0)
    assert {weights[f"llava-1.5-13b/{budget}"] for budget in (128, 64, 32)} == {(0.5, 0.4)}
    assert [weights[f"llava-next-7b/{budget}"] for budget in (640, 320, 160)] == [(0.5, 0.5), (0.5, 0.4), (0.5, 0.5)]
    assert {weights[f"llava-next-13b/{budget}"] for budget in (640, 320, 160)} == {(0.5, 0.5)}
    assert {weights[f"qwen2.5-vl-7b/{budget}"] for budget in (256, 128)} == {(0.5, 0.4)}
    assert [weights[f"internvl3-8b/{budget}"] for budget in (256, 128)] == [(0.2, 0.2), (0.3, 0.2)]


def test_every_method_knows_them_after_its_own() -> None:
    assert dict(presets("tops")) == PRESETS
    for name, method in METHODS.items():
        known = list(presets(name))
        assert known[: len(method.presets)] == list(method.presets)
        assert set(known) == {*method.presets, *PRESETS}
