"""The published shapes: that they are what they are called, what their FLOPs are, and that they run made narrow."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import shapes
from benchmarks.published_sizes import SIZES
from benchmarks.tiny_sizes import narrow
from tops_engine.budget import tokens_per_layer
from tops_engine.families import Family
from tops_engine.generation.run import Run
from tops_engine.methods.tops_presets import PRESETS
from tops_engine.settings import Generation, Pruning

#: Decoder layers, visual tokens of the picture, and (roughly) parameters in thousand millions, vision included.
FACTS = {
    "llava-1.5-7b": (32, 576, 7.06),
    "llava-1.5-13b": (40, 576, 13.35),
    "llava-next-7b": (32, 2928, 7.06),
    "llava-next-13b": (40, 2928, 13.35),
    "llava-next-mistral-7b": (32, 2928, 7.57),
    "llava-next-llama3-8b": (32, 2928, 8.36),
    "llava-onevision-0.5b": (24, 3699, 0.894),
    "llava-onevision-7b": (28, 3699, 8.03),
    "qwen2.5-vl-7b": (28, 1296, 8.29),
    "qwen3-vl-8b": (36, 1024, 8.77),
    "internvl3-8b": (28, 1280, 7.94),
    "smolvlm-256m": (30, 832, 0.256),
    "smolvlm-2.2b": (24, 1053, 2.25),
}


@pytest.fixture(scope="module", params=SIZES)
def on_meta(request: pytest.FixtureRequest) -> tuple[str, Family]:
    return request.param, shapes.build(SIZES[request.param], "meta", torch.bfloat16)


def test_shapes_are_what_they_are_called(on_meta: tuple[str, Family]) -> None:
    name, family = on_meta
    num_layers, num_visual, parameters = FACTS[name]
    prompt = family.prepare(shapes.question(SIZES[name], 60))
    row = shapes.count(family, prompt, Pruning(method="none"), 32)
    assert family.decoder.num_layers == num_layers
    assert row["visual_tokens"] == row["layer_average"] == num_visual
    assert row["weight_bytes"] / 2e9 == pytest.approx(parameters, rel=0.01)
    for pruning in shapes.prunings(SIZES[name]).values():
        assert shapes.count(family, prompt, pruning, 32)["prefill_flops"] <= row["prefill_flops"]


@pytest.mark.parametrize("schedule", [None, "llava-1.5-7b/64"])
def test_flops_on_meta_are_those_torch_counts(schedule: str | None) -> None:
    family = shapes.build(SIZES["llava-1.5-7b"], "meta", torch.bfloat16)
    prompt = family.prepare(shapes.question(SIZES["llava-1.5-7b"], 60))
    pruning = Pruning(schedule=schedule) if schedule else Pruning(method="none")
    row = shapes.count(family, prompt, pruning, 3)
    visual = tokens_per_layer(pruning.stages(576, 32), 576, 32)
    lengths = [len(prompt.input_ids) - 576 + count for count in visual]
    decoder = family.decoder

    def layers(lengths: list[int], keys: list[int]) -> None:
        for layer, (length, num_keys) in enumerate(zip(lengths, keys, strict=True)):
            hidden = torch.empty(1, length, 4096, dtype=torch.bfloat16, device="meta")
            rope = decoder.rope(
                hidden, torch.zeros(1, length, dtype=torch.long, device="meta"), decoder.layer_types[layer]
            )
            decoder.run_layer(layer, hidden, rope, None, Cache(num_keys))
        decoder.logits(hidden[:, -1])

    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as vision:
            family.project([prompt])
        with FlopCounterMode(display=False) as prefill:
            layers(lengths, lengths)
        with FlopCounterMode(display=False) as decode:
            for step in (1, 2):
                layers([1] * 32, [length + step for length in lengths])
    assert row["vision_flops"] == vision.get_total_flops()
    assert row["prefill_flops"] == prefill.get_total_flops()
    assert row["decode_flops"] == decode.get_total_flops()


class Cache:
    """As long as it is told to be; holds nothing."""

    def __init__(self, num_keys: int) -> None:
        self.num_keys = num_keys

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (*keys.shape[:2], self.num_keys, keys.shape[3])
        return keys.new_empty(shape), values.new_empty(shape)


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-1.5-13b", "llava-next-13b", "internvl3-8b"])
def test_the_papers_budgets_run_on_as_many_layers_and_tokens(name: str) -> None:
    family = shapes.build(narrow(SIZES[name]), "cpu", torch.float32)
    conversation = shapes.question(SIZES[name], 10)
    presets = {preset: PRESETS[preset] for preset in PRESETS if preset.startswith(f"{name}/")}
    assert len(presets) >= 3
    for schedule, preset in presets.items():
        run = Run(family, "narrow", [conversation], Pruning(schedule=schedule), Generation(max_tokens=1))
        run.start()
        usage = run.answers()[0].usage
        assert [(stage.layer, *stage.visual_tokens) for stage in usage.stages] == [tuple(s) for s in preset.stages]
        assert usage.layer_average == pytest.approx(preset.layer_average)


def test_measured_rows_have_times_and_reach_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SIZES, "smolvlm-256m", narrow(SIZES["smolvlm-256m"]))
    output = tmp_path / "shapes.json"
    options = ["--device", "cpu", "--dtype", "float32", "--repeats", "1", "--tokens", "3", "--json", str(output)]
    monkeypatch.setattr(sys, "argv", ["shapes.py", "smolvlm-256m", *options])
    shapes.main()
    rows = json.loads(output.read_text())["results"]
    assert [row["pruning"] for row in rows] == ["none", "keep 0.222", "keep 0.111", "keep 0.056"]
    assert all(row[stage] > 0 for row in rows for stage in ("vision", "prefill", "decode"))
    assert rows[0]["layer_average"] > rows[3]["layer_average"]
    assert "smolvlm-256m" in capsys.readouterr().out


def test_an_unknown_shape_names_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["shapes.py", "gpt-9"])
    with pytest.raises(SystemExit):
        shapes.main()


def test_the_recorded_results_are_those_of_the_shapes() -> None:
    recorded = json.loads((Path(shapes.__file__).parent / "results" / "shapes.json").read_text())["results"]
    arguments = argparse.Namespace(device="meta", dtype="bfloat16", attention="sdpa", text=60, tokens=32)
    fresh = [row | {"num_new": 32} for row in shapes.report("internvl3-8b", arguments)]
    assert [row for row in recorded if row["shape"] == "internvl3-8b"] == json.loads(json.dumps(fresh))
