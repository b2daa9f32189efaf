"""Write ``tops_engine/families/savings.json``, what pruning saves on published shapes: python -m tools.record_savings

Nothing is measured and nothing downloaded. Configs are those of the layouts in ``tests/support/layouts``, or the
defaults of transformers' config class. A small checkpoint of the tests gives tokenizer and template, and the published
image processor counts the visual tokens of one picture. FLOPs and bytes follow from the formulas of the engine, which
tests compare with torch's counter and with the cache's contents.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.support.published_layouts import FILES, PublishedLayout
from tests.tops_engine.families.test_families import SAVE
from tools.published_shapes import CONFIGS, PROCESSORS
from tops_engine.budget import tokens_per_layer
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.families import Family, family_for
from tops_engine.settings import Pruning

RECORD = Path(__file__).parents[1] / "tops_engine" / "families" / "savings.json"

KEEP = 0.222
PICTURE, NUM_TEXT, NUM_NEW = (1024, 768), 60, 128


@dataclass(frozen=True)
class Shape:
    """A published checkpoint: its name, its config.json, and the model type that its tokenizer is made for."""

    checkpoint: str
    config: dict[str, Any]

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])


def main() -> None:
    rows = [savings(shape) for shape in shapes()]
    rows.sort(key=lambda row: (-row["answer"], row["checkpoint"]))
    text = json.dumps({"keep": KEEP, "picture": PICTURE, "text": NUM_TEXT, "new": NUM_NEW, "rows": rows}, indent=1)
    RECORD.write_text(text + "\n", encoding="utf-8")


def shapes() -> Iterator[Shape]:
    """Return the published shapes of every model type that has a small checkpoint."""
    layouts = [PublishedLayout.read(file) for file in FILES]
    yield from (Shape(layout.checkpoints[0], layout.config) for layout in layouts)
    known = {layout.config["model_type"] for layout in layouts}
    others = (Shape(checkpoint, config) for checkpoint, config in CONFIGS.items())
    yield from (shape for shape in others if shape.model_type not in known)


def savings(shape: Shape) -> dict[str, Any]:
    """Return the shares of prefill, KV cache and whole answer that pruning to ``KEEP`` saves."""
    family = build(shape)
    picture = Image.new("RGB", PICTURE, "white")
    prompt = family.prepare(read_conversation([user_message("?", picture)]))
    bare = family.prepare(read_conversation([user_message("?")]))
    num_visual = sum(span.layout.num_tokens for span in prompt.spans)
    # Marks around the picture and its rows are text that the picture brings along.
    num_text = NUM_TEXT + len(prompt.input_ids) - num_visual - len(bare.input_ids)
    vision = family.vision_flops(prompt)
    before = work(family, Pruning(method="none"), num_visual, num_text)
    after = work(family, Pruning(keep=KEEP), num_visual, num_text)
    first = work(family, Pruning(keep=KEEP, stages="first"), num_visual, num_text)
    return {
        "model_type": shape.model_type,
        "checkpoint": shape.checkpoint,
        "visual_tokens": num_visual,
        "prefill": saved(before.prefill, after.prefill),
        "prefill_first": saved(before.prefill, first.prefill),
        "kv": saved(before.kv_bytes, after.kv_bytes),
        "answer": saved(vision + before.prefill + before.decode, vision + after.prefill + after.decode),
    }


@dataclass(frozen=True)
class Work:
    """FLOPs of reading the prompt and of writing the answer, and bytes of keys, values and states at its end."""

    prefill: int
    decode: int
    kv_bytes: int


def work(family: Family, pruning: Pruning, num_visual: int, num_text: int) -> Work:
    decoder = family.decoder
    stages = pruning.stages(num_visual, decoder.num_layers)
    visual = tokens_per_layer(stages, num_visual, decoder.num_layers)
    per_layer = [num_text + count for count in visual]
    # Behind the last stage only the last token runs through layers that keep nothing.
    last = max([decoder.num_writing_layers, *(stage.layer for stage in stages)])
    skipped = [count - 1 if layer >= last else 0 for layer, count in enumerate(per_layer)]
    prefill = decoder.shape.prefill_flops(per_layer, skipped) + decoder.shape.embedding_flops(num_text + num_visual)
    decode = decoder.shape.decode_flops(per_layer, NUM_NEW - 1)
    return Work(prefill, decode, decoder.shape.kv_cache_bytes(per_layer, NUM_NEW - 1, decoder.dtype.itemsize))


def saved(before: int, after: int) -> float:
    return round(1 - after / before, 4)


def build(shape: Shape) -> Family:
    """Build the family on the meta device: the published sizes, without weights."""
    with tempfile.TemporaryDirectory() as name:
        folder = SAVE[shape.model_type](Path(name) / "small")
        small = json.loads((folder / "config.json").read_text())
        tokens = {key: value for key, value in small.items() if re.search(r"_token_(id|index)$", key)}
        (folder / "config.json").write_text(json.dumps(shape.config | tokens))
        write_processor(folder, PROCESSORS.get(shape.checkpoint, PROCESSORS.get(shape.model_type, {})))
        config, family = AutoConfig.from_pretrained(folder), family_for(shape.config)
        assert family is not None
        processor = family.load_processor(str(folder), None)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16, attn_implementation="eager")
    return family(model.eval(), processor)


def write_processor(folder: Path, published: dict[str, dict[str, Any]]) -> None:
    """Give a small checkpoint the published processor: the defaults of its classes, and what differs from them."""
    for name in ("preprocessor_config", "processor_config"):
        path = folder / f"{name}.json"
        small = json.loads(path.read_text()) if path.is_file() else {}
        kept = {key: value for key, value in small.items() if key.endswith(("_type", "_class", "_token"))}
        inner = {"image_processor": kinds(small["image_processor"])} if "image_processor" in small else {}
        path.write_text(json.dumps(kept | inner | published.get(name, {})))


def kinds(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key.endswith("_type")}


if __name__ == "__main__":
    main()
