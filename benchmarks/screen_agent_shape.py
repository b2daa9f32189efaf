"""Run the agent of ``docs/examples/langchain/screen_agent.py`` on a thin Qwen2.5-VL with random weights.

    python -m benchmarks.screen_agent_shape --steps 20 --json benchmarks/results/screen_agent_shape.json

The model has the geometry of Qwen2.5-VL-3B (head size, grouped queries, feed-forward ratio, windows of the vision
tower, its image processor) at a quarter of the width and of the depth: 9 layers of width 512 and a tower of 8 layers of
width 320. A screenshot of 504 x 504 pixels is 324 visual tokens, as in the published model. Times are those of this
thin model; token counts do not depend on width and depth.
"""

import argparse
import asyncio
import json
import runpy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from langchain_tops import ChatTOPSLlava, VisualBudgetMiddleware
from transformers import AutoConfig, AutoModelForImageTextToText

from benchmarks.published_sizes import SIZES, Published
from benchmarks.shapes import write_files

AGENT = Path(__file__).parents[1] / "docs" / "examples" / "langchain" / "screen_agent.py"


def thin() -> Published:
    """Return the size of Qwen2.5-VL-3B, a quarter as wide and as deep."""
    published = SIZES["qwen2.5-vl-7b"]
    text = {
        "hidden_size": 512,
        "intermediate_size": 2752,
        "num_hidden_layers": 9,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "vocab_size": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 8,
        "hidden_size": 320,
        "intermediate_size": 856,
        "num_heads": 4,
        "out_hidden_size": 512,
        "fullatt_block_indexes": [1, 3, 5, 7],
    }
    config = published.config
    return replace(
        published,
        config=config
        | {"text_config": config["text_config"] | text, "vision_config": config["vision_config"] | vision},
    )


def save(folder: Path) -> None:
    """Write the thin model with random weights."""
    tokenizer = write_files(thin(), folder)
    config = AutoConfig.from_pretrained(folder)
    config.image_token_id = tokenizer.convert_tokens_to_ids(thin().tokens["image_token"])
    config.video_token_id = tokenizer.convert_tokens_to_ids(thin().tokens["video_token"])
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--max-visual-tokens", type=int, default=250)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)

    agent: dict[str, Any] = runpy.run_path(str(AGENT))
    with tempfile.TemporaryDirectory() as name:
        save(Path(name))
        model = ChatTOPSLlava(model=name, device="cpu", keep=given.keep, max_tokens=90)
        asyncio.run(agent["run"](model, 1, []))  # loads the weights
        without = asyncio.run(agent["run"](model, given.steps, []))
        budgeted = asyncio.run(agent["run"](model, given.steps, [VisualBudgetMiddleware(given.max_visual_tokens)]))
    print(agent["table"](without, budgeted))
    if given.plot:
        agent["plot"](without, budgeted, given.plot)
    if given.json:
        columns = {"without": without, "with_budget": budgeted}
        rows = {name: [step._asdict() for step in steps] for name, steps in columns.items()}
        given.json.write_text(json.dumps({"keep": given.keep, "budget": given.max_visual_tokens, **rows}, indent=1))


if __name__ == "__main__":
    main()
