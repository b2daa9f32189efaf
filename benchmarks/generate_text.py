"""Time ComfyUI's Generate Text with and without TOPS Prune LLM, in turns, on random weights of a published shape.

    python -m benchmarks.generate_text COMFYUI --small
    python -m benchmarks.generate_text COMFYUI --size 1024x768 --tokens 8 --rounds 2 --keeps 1.0,0.222 --json text.json

Run it with ComfyUI's Python. COMFYUI is its folder, of a version that has Qwen3-VL (0.29). The shape is that of
Qwen3-VL-4B, with weights in bfloat16, computed in the precision that ComfyUI chooses (on a CPU float32); it needs 9 GB
of memory. ``--small`` rehearses with two layers. Times are medians over the rounds, and ratios are medians of the
rounds' ratios to ComfyUI alone. They include the vision tower, not the tokenizer.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
PROMPT = "Describe this picture."
KEEPS = "1.0,0.5,0.222,0.111"

#: Layers of decoder and tower in a rehearsal.
SMALL = 2


def load_pack(comfyui: str) -> ModuleType:
    """Set ComfyUI up on the CPU without its server, and return our pack as ComfyUI loads it."""
    sys.argv = ["main.py", "--cpu"]
    sys.path[:] = [comfyui, *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
    import comfy.options

    comfy.options.enable_args_parsing()
    importlib.import_module("comfy.model_management")
    spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = pack
    spec.loader.exec_module(pack)
    return pack


def build_clip(small: bool) -> Any:
    """Return ComfyUI's CLIP of Qwen3-VL-4B with random weights in bfloat16."""
    import comfy.sd
    import torch
    from comfy.text_encoders import qwen3vl

    sizes = {}
    if small:
        sizes["num_hidden_layers"] = 4 * SMALL
        qwen3vl.QWEN3VL_VISION["qwen3vl_4b"] |= {"depth": 2 * SMALL, "deepstack_visual_indexes": [0, 1]}
        sizes |= {"hidden_size": 256, "intermediate_size": 512}
    target = SimpleNamespace(
        params={}, clip=qwen3vl.te(model_type="qwen3vl_4b"), tokenizer=qwen3vl.tokenizer("qwen3vl_4b")
    )
    options = {"dtype": torch.bfloat16, "qwen3vl_4b_model_config": sizes}
    clip = comfy.sd.CLIP(target, model_options=options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in clip.cond_stage_model.named_parameters():
            if "norm" in name:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                weight.normal_(std=0.02, generator=generator)
    return clip


def run(clip: Any, picture: Any, num_new: int) -> dict[str, Any]:
    """Return seconds and tokens of one answer. Nothing ends it early: random weights would end it anywhere."""
    import comfy.utils

    times: list[float] = []
    comfy.utils.set_progress_bar_global_hook(lambda *_, **__: times.append(perf_counter()))
    tokens = clip.tokenize(PROMPT, image=picture)
    clip.cond_stage_model.qwen3vl_4b.transformer.model.config.stop_tokens = []
    begun = perf_counter()
    ids = clip.generate(tokens, do_sample=False, max_length=num_new)
    return {"first": times[0] - begun, "seconds": perf_counter() - begun, "ids": ids}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--size", default="1024x768")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keeps", default=KEEPS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pack = load_pack(options.comfyui)
    import torch

    from benchmarks.machine import machine

    about = machine()
    patches = importlib.import_module("pack.nodes.comfyui_llm.patches")
    nodes = {name: node() for name, node in pack.nodes.NODE_CLASS_MAPPINGS.items()}
    width, height = map(int, options.size.split("x"))
    picture = torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        clip = build_clip(options.small)
        sides: dict[str, Any] = {"ComfyUI alone": clip}
        for keep in map(float, options.keeps.split(",")):
            (pruning,) = nodes["TOPSPruning"].settings(keep=keep)
            sides[f"keep {keep}"] = nodes["TOPSPruneLLM"].prune(clip, pruning)["result"][0]
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        ids: dict[str, list[int]] = {}
        one_token: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(options.rounds + 1):
            for name, side in sides.items():
                whole = run(side, picture, options.tokens)
                first = whole["first"]
                ids[name] = whole["ids"]
                if number:  # the first round warms up
                    one_token[name].append(first)
                    seconds[name].append(whole["seconds"])
                print(f"round {number}, {name}: first token {first:.2f} s, whole {whole['seconds']:.2f} s", flush=True)
    rows = []
    for name, side in sides.items():
        runs = patches.runs_of(side)
        finished = runs.finished[-1] if runs else None
        reading = finished.reading if finished else None
        base = zip(seconds[name], seconds["ComfyUI alone"], strict=True)
        first_base = zip(one_token[name], one_token["ComfyUI alone"], strict=True)
        rows.append(
            {
                "side": name,
                "visual_tokens": sum(picture.layout.num_tokens for picture in finished.pictures) if finished else None,
                "kept": [sum(map(len, segment.kept[0])) for segment in reading.segments] if reading else None,
                "vision_seconds": finished.clock.seconds("vision") if finished else None,
                "first_token_seconds": median(one_token[name]),
                "seconds": median(seconds[name]),
                "times_faster_to_the_first_token": median(other / own for own, other in first_base),
                "times_faster": median(other / own for own, other in base),
                "same_tokens_as_comfyui": ids[name] == ids["ComfyUI alone"],
            }
        )
    for row in rows:
        print(json.dumps(row))
    if options.json is not None:
        setup = {"size": options.size, "tokens": options.tokens, "rounds": options.rounds, "small": options.small}
        options.json.write_text(json.dumps({"machine": about, "setup": setup, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
