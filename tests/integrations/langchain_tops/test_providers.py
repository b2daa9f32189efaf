"""The token formulas of providers give the examples of their documentation."""

from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel, LangSmithParams
from langchain_tops.providers import (
    FORMULAS,
    claude_patches,
    formula_of,
    gemini_2_tiles,
    openai_patches,
    size_within,
    tiles,
)

from tests.docs.blocks import ROOT


class Named(FakeListChatModel):
    """A chat model of a provider, as its own package names it."""

    provider: str
    model: str

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return LangSmithParams(ls_provider=self.provider, ls_model_name=self.model)


@pytest.mark.parametrize(
    ("provider", "model", "size", "tokens"),
    [
        # https://platform.openai.com/docs/guides/images-vision
        ("openai", "gpt-4o", (1024, 1024), 765),
        ("openai", "gpt-4o-2024-11-20", (2048, 4096), 1105),
        ("openai", "gpt-4o-mini", (1024, 1024), 2833 + 4 * 5667),
        ("openai", "gpt-4.1-mini", (1024, 1024), 1659),  # 1024 patches, 1.62 tokens each
        ("openai", "gpt-4.1-mini", (1800, 2400), 2353),  # scaled down to 1452 patches
        ("openai", "o3", (1024, 1024), 675),
        ("azure", "gpt-5", (512, 512), 210),
        ("openai", "gpt-5-nano-2025-08-07", (512, 512), 630),
        ("openai", "gpt-5.6", (4032, 3024), 14364),
        # https://platform.claude.com/docs/en/build-with-claude/vision
        ("anthropic", "claude-sonnet-4-6", (1000, 1000), 1296),
        ("anthropic", "claude-3-5-sonnet-latest", (200, 200), 64),
        ("anthropic", "claude-sonnet-4-6", (1920, 1080), 1560),
        ("anthropic", "claude-opus-4-8", (1920, 1080), 2691),
        ("amazon_bedrock", "us.anthropic.claude-opus-4-8-v1:0", (1920, 1080), 2691),
        # https://firebase.google.com/docs/vertex-ai/input-file-requirements
        ("google_genai", "models/gemini-2.5-flash", (384, 300), 258),
        ("google_genai", "models/gemini-2.5-flash", (960, 540), 6 * 258),
        ("google_genai", "gemini-3-pro-preview", (4000, 3000), 1120),
    ],
)
def test_pictures_count_as_documented(provider: str, model: str, size: tuple[int, int], tokens: int) -> None:
    formula = formula_of(Named(responses=["yes"], provider=provider, model=model))
    assert formula is not None
    assert formula.count(*size) == tokens


@pytest.mark.parametrize(
    ("provider", "model"),
    [("ollama", "llava:7b"), ("ollama", "gpt-4o"), ("mistralai", "pixtral-large"), ("openai", "o3-mini"), ("", "")],
)
def test_what_nobody_documents_is_not_guessed(provider: str, model: str) -> None:
    assert formula_of(Named(responses=["yes"], provider=provider, model=model)) is None


def test_every_formula_has_a_source_and_a_date() -> None:
    page = (ROOT / "docs" / "langchain.md").read_text(encoding="utf-8")
    for pattern, formula in FORMULAS:
        assert formula.source.startswith("https://"), pattern
        assert formula.source in page, pattern
        year, month = map(int, formula.read.split("-"))
        assert year >= 2026, pattern
        assert 1 <= month <= 12, pattern
        assert formula.count(1, 1) > 0, pattern


@pytest.mark.parametrize("size", [(1280, 800), (4000, 90), (17, 3000), (1, 1)])
@pytest.mark.parametrize(
    "count", [tiles(85, 170), openai_patches(1.62, 1536), claude_patches(1568, 1568), gemini_2_tiles]
)
def test_the_largest_size_within_a_budget(count: Any, size: tuple[int, int]) -> None:
    for max_tokens in (16, 100, 255, 300, 1000, 5000):
        fits = size_within(*size, max_tokens, count)
        if fits is None:
            assert count(*(max(1, round(side / 64)) for side in size)) > max_tokens
        else:
            assert count(*fits) <= max_tokens
            assert fits == size or count(*size) > max_tokens
    assert size_within(*size, 10**6, count) == size
