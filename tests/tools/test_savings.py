"""Test that the recorded savings are those of the formulas, and that they name every family."""

import json

import pytest

from tests.support.published_layouts import FILES, PublishedLayout
from tools.record_savings import RECORD, Shape, build, savings, shapes, work
from tops_engine.families import FAMILIES
from tops_engine.settings import Pruning
from tops_engine.supported_models import recorded_savings

#: They are read in the layout of the original code, from the shapes of the weights; docs/models.md says what they save.
ORIGINAL = {"llava_hr", "llava_qwen"}
#: Model types whose shapes are computed again in every run of the tests.
USUAL = ("llava", "qwen3_5")

SHAPES = {shape.checkpoint: shape for shape in shapes()}


@pytest.mark.parametrize(
    "checkpoint",
    [pytest.param(name, marks=() if shape.model_type in USUAL else pytest.mark.full) for name, shape in SHAPES.items()],
)
def test_the_record_is_what_the_formulas_say(checkpoint: str) -> None:
    """After a change: ``python -m tools.record_savings`` writes it anew."""
    rows = {row["checkpoint"]: row for row in json.loads(RECORD.read_text())["rows"]}
    assert rows[checkpoint] == savings(SHAPES[checkpoint])


def test_every_layout_is_in_the_record_and_it_is_sorted() -> None:
    rows = recorded_savings().rows
    layouts = [PublishedLayout.read(file) for file in FILES]
    # A new family: `python -m tools.record_savings && python -m tools.record_docs`.
    assert {layout.checkpoints[0] for layout in layouts} <= {row.checkpoint for row in rows}
    assert {row.model_type for row in rows} | ORIGINAL == set(FAMILIES)
    assert [row.answer for row in rows] == sorted((row.answer for row in rows), reverse=True)
    assert all(0 < min(row.prefill, row.kv, row.answer) < 1 for row in rows)


def test_the_published_processor_gives_the_known_number_of_tokens() -> None:
    """LLaVA-1.5 has 24 x 24 tokens, whatever the picture."""
    family = build(SHAPES["llava-hf/llava-1.5-7b-hf"])
    counts = {row.checkpoint: row.visual_tokens for row in recorded_savings().rows if row.model_type == "llava"}
    # JoyCaption's SigLIP has 27 x 27.
    assert counts == {"llava-hf/llava-1.5-7b-hf": 576, "fancyfeast/llama-joycaption-beta-one-hf-llava": 729}
    whole = work(family, Pruning(method="none"), 576, 60)
    # Two products of a multiply-add for each weight of the language model but the token table, and attention.
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    attention = 32 * 2 * 2 * 636**2 * 4096
    assert whole.prefill == 2 * 636 * weights + attention + 2 * 4096 * family.decoder.shape.vocab_size
    # Keys and values of 636 + 127 tokens, 2 bytes a value.
    assert whole.kv_bytes == 32 * 2 * (636 + 127) * 4096 * 2


def test_a_hybrid_saves_its_full_layers_only() -> None:
    shape = next(shape for shape in SHAPES.values() if shape.model_type == "qwen3_5")
    assert isinstance(shape, Shape)
    family = build(shape)
    whole, pruned = (work(family, pruning, 768, 60) for pruning in (Pruning(method="none"), Pruning(keep=0.222)))
    full = family.decoder.layer_types.count("full_attention")
    assert (full, family.decoder.num_layers) == (8, 32)
    per_token = 2 * 4 * 256 * 2
    stages = Pruning(keep=0.222).stages(768, 32)
    kept = [[stage.num_tokens for stage in stages if stage.layer <= layer][-1] for layer in range(32)]
    dropped = sum(768 - count for count, kind in zip(kept, family.decoder.layer_types, strict=True) if "full" in kind)
    assert whole.kv_bytes - pruned.kv_bytes == dropped * per_token
