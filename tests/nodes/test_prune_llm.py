"""Test the nodes for ComfyUI's own language models as far as they need no ComfyUI (the rest is in tests/comfyui)."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import pytest

from nodes.prune_llm import budget_words, check_signals
from tests.nodes.conftest import node
from tops_engine.errors import InvalidInput
from tops_engine.settings import Pruning

if TYPE_CHECKING:
    from nodes.comfyui_llm.language_model import LanguageModel


@pytest.mark.parametrize("call", [lambda: node("TOPSPruneLLM").prune("text"), lambda: node("TOPSLoadFromClip").load(3)])
def test_what_is_no_clip_is_refused_in_a_sentence(call: object) -> None:
    assert callable(call)
    with pytest.raises(InvalidInput, match=r"The input 'clip' got a (str|int); connect it to Load CLIP."):
        call()


def test_the_decoder_of_comfyui_has_what_the_engine_sets_of_its_own() -> None:
    """Without ComfyUI nothing runs it, so that a new attribute of the engine's decoder would be missed."""
    from nodes.comfyui_llm.decoder import CoreDecoder
    from tops_engine.families import Decoder

    def attributes(set_up: Callable[..., None]) -> set[str]:
        tree = ast.parse(textwrap.dedent(inspect.getsource(set_up)))
        return {
            node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        }

    of_layers_that_the_engine_runs = {"lm_head", "cache_argument", "_apply_rotary"}
    assert attributes(Decoder.__init__) - of_layers_that_the_engine_runs <= attributes(CoreDecoder.__init__)


def test_a_report_needs_a_clip() -> None:
    with pytest.raises(InvalidInput, match="connect it to Load CLIP"):
        node("TOPSLLMReport").report(None, "text")


def test_a_method_that_watches_layers_is_refused_before_the_model_is_looked_at() -> None:
    with pytest.raises(InvalidInput, match="'transprune' watches the parts of layers"):
        check_signals(Pruning(method="transprune"), cast("LanguageModel", None))


def test_a_budget_is_said_in_words() -> None:
    assert budget_words(Pruning(keep=0.222)) == "keeps 22.2 % of the visual tokens"
    assert budget_words(Pruning(keep=64)) == "keeps 64 tokens"
    assert budget_words(Pruning(schedule="0:256,12:64")) == "schedule [[0, 256], [12, 64]]"
