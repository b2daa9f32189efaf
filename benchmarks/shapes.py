"""Compute what pruning saves for any published size, with random weights of that shape and without downloads.

    python -m benchmarks.shapes --device meta --json benchmarks/results/shapes.json
    python -m benchmarks.shapes llava-next-7b internvl3-8b --device cuda --dtype bfloat16 --json measured.json

On ``meta`` no model runs: FLOPs, weights and KV cache follow from the shapes (tests compare the formulas with torch's
counter). On a real device every pruning answers the same question in turns, and times are medians. Peak memory is the
most that torch's allocator held on the GPU, including weights. With random weights other tokens are kept than with
trained ones, in the same time.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from benchmarks.published_sizes import SIZES, Published
from tops_engine.budget import tokens_per_layer
from tops_engine.conversation.messages import Conversation, read_conversation, user_message
from tops_engine.families import FAMILIES, Family, Prompt
from tops_engine.generation.run import Run
from tops_engine.methods.tops_presets import PRESETS
from tops_engine.settings import Generation, Pruning

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{{ 'PLACEHOLDER\n' if part['type'] == 'image' else part['text'] }}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
FRACTIONS = (0.222, 0.111, 0.056)
STAGES = ("vision", "selection", "prefill", "decode")


def build(published: Published, device: str, dtype: torch.dtype, attention: str = "sdpa") -> Family:
    """Build a family with random weights of a published shape, its real image processor and a byte tokenizer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = write_files(published, folder)
        config = AutoConfig.from_pretrained(folder)
        family = FAMILIES[config.model_type]
        processor = family.load_processor(str(folder), None)
    config.image_token_id = processor.image_token_id
    if "video_token" in published.tokens:
        config.video_token_id = tokenizer.convert_tokens_to_ids(published.tokens["video_token"])
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
    # With random weights an answer could end anywhere, so no token ends it; generate then needs a padding token.
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = [], processor.tokenizer.pad_token_id
    return family(model.eval(), processor)


def write_files(published: Published, folder: Path) -> PreTrainedTokenizerFast:
    """Write the checkpoint's folder without weights."""
    special = ["<s>", "</s>", "<pad>", *published.tokens.values(), *published.more_tokens]
    alphabet = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=published.tokens,
    )
    tokenizer.add_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save_pretrained(folder)
    video = published.placeholder
    if "video_token" in published.tokens:
        image = published.tokens.get("image_token", published.placeholder)
        video = video.replace(image, published.tokens["video_token"])
    template = (
        "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
        f"{{{{ {{'image': '{published.placeholder}\\n', 'video': '{video}\\n'}}.get(part['type'], part['text']) }}}}"
        "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    files = {"config": published.config, "preprocessor_config": published.preprocessor}
    for name, content in (files | {"processor_config": published.processor}).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return tokenizer


def random_picture(published: Published, seed: int = 0) -> Image.Image:
    """Return random pixels in the size of the published shape's picture."""
    width, height = published.picture
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def question(published: Published, num_text: int, seed: int = 0) -> Conversation:
    """Return a question of about ``num_text`` tokens about a picture of random pixels."""
    return read_conversation([user_message("?" * num_text, random_picture(published, seed))])


def prunings(published: Published) -> dict[str, Pruning]:
    """Return the unpruned budget and the paper's budgets, or fractions if the paper has none."""
    if published.presets is None:
        return {"none": Pruning(method="none")} | {f"keep {keep}": Pruning(keep=keep) for keep in FRACTIONS}
    names = [name for name in PRESETS if name.startswith(f"{published.presets}/")]
    return {"none": Pruning(method="none")} | {name: Pruning(schedule=name) for name in names}


def count(family: Family, prompt: Prompt, pruning: Pruning, num_new: int) -> dict[str, Any]:
    """Compute FLOPs and bytes by formula for ``num_new`` tokens after ``prompt``."""
    shape, num_layers = family.decoder.shape, family.decoder.num_layers
    num_visual = [span.layout.num_tokens for span in prompt.spans]
    stages = [pruning.stages(total, num_layers) for total in num_visual]
    layers = [tokens_per_layer(plan, total, num_layers) for plan, total in zip(stages, num_visual, strict=True)]
    visual = [sum(counts) for counts in zip(*layers, strict=True)]
    num_text = len(prompt.input_ids) - sum(num_visual)
    per_layer = [num_text + count for count in visual]
    size = family.decoder.dtype.itemsize
    return {
        "visual_tokens": sum(num_visual),
        "layer_average": sum(visual) / num_layers,
        "vision_flops": family.vision_flops(prompt),
        "prefill_flops": shape.prefill_flops(per_layer),
        "decode_flops": shape.decode_flops(per_layer, num_new - 1),
        "kv_cache_bytes": shape.kv_cache_bytes(per_layer, num_new - 1, size),
        "weight_bytes": sum(parameter.nbytes for parameter in family.model.parameters()),
    }


def measure(
    family: Family, conversation: Conversation, variants: dict[str, Pruning], num_new: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Measure median seconds of each stage and peak bytes; the prunings run in turns after a warm-up round."""
    on_gpu = family.decoder.device.type == "cuda"
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for round_ in range(repeats + 1):
        for name, pruning in variants.items():
            if on_gpu:
                torch.cuda.reset_peak_memory_stats(family.decoder.device)
            run = Run(family, "random weights", [conversation], pruning, Generation(max_tokens=num_new))
            run.start()
            while not run.done:
                run.step()
            (answer,) = run.answers()
            if round_ > 0:
                timings = {stage: getattr(answer.timings, stage) for stage in STAGES}
                peak = torch.cuda.max_memory_allocated(family.decoder.device) if on_gpu else float("nan")
                flops = {"selection_flops": answer.flops.selection}
                runs[name].append(timings | {"peak_bytes": peak} | flops)
    return {name: {key: median(run[key] for run in done) for key in done[0]} for name, done in runs.items()}


def report(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return all rows of one published size."""
    published = SIZES[name]
    family = build(published, arguments.device, getattr(torch, arguments.dtype), arguments.attention)
    conversation = question(published, arguments.text)
    prompt = family.prepare(conversation)
    variants = prunings(published)
    rows = {label: count(family, prompt, pruning, arguments.tokens) for label, pruning in variants.items()}
    measured: dict[str, dict[str, float]] = {}
    if arguments.device != "meta":
        measured = measure(family, conversation, variants, arguments.tokens, arguments.repeats)
    about = {"shape": name, "checkpoint": published.checkpoint, "picture": published.picture}
    return [about | {"pruning": label} | row | measured.get(label, {}) for label, row in rows.items()]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    result = Table()
    columns = ("shape", "pruning", "visual tokens", "layer-average", "TFLOPs vision", "prefill", "KV MB", "weights GB")
    for column in (*columns, "ms vision", "selection", "prefill", "decode/token", "peak GB"):
        result.add_column(column, justify="left" if column in ("shape", "pruning") else "right")
    for row in rows:
        times = [f"{1e3 * row[stage]:.1f}" for stage in STAGES[:3]] if "prefill" in row else ["-"] * 3
        decode = f"{1e3 * row['decode'] / (row['num_new'] - 1):.1f}" if "decode" in row else "-"
        peak = row.get("peak_bytes", float("nan"))
        result.add_row(
            row["shape"],
            row["pruning"],
            str(row["visual_tokens"]),
            f"{row['layer_average']:.1f}",
            f"{row['vision_flops'] / 1e12:.2f}",
            f"{row['prefill_flops'] / 1e12:.2f}",
            f"{row['kv_cache_bytes'] / 1e6:.0f}",
            f"{row['weight_bytes'] / 1e9:.1f}",
            *times,
            decode,
            "-" if peak != peak else f"{peak / 1e9:.1f}",
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", metavar="shape", help=f"which of {', '.join(SIZES)}; default all")
    parser.add_argument("--device", default="meta", help="meta, cpu or cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager", "flash_attention_2"])
    parser.add_argument("--text", type=int, default=60, help="tokens of the question")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of the answer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    if unknown := set(arguments.shapes) - set(SIZES):
        parser.error(f"unknown shapes {', '.join(sorted(unknown))}; there are {', '.join(SIZES)}")

    rows = []
    for name in arguments.shapes or SIZES:
        rows += [row | {"num_new": arguments.tokens} for row in report(name, arguments)]
    Console(width=200).print(table(rows))
    if arguments.json:
        setting = {"torch": torch.__version__, "device": arguments.device, "dtype": arguments.dtype}
        if arguments.device.startswith("cuda"):
            setting["gpu"] = torch.cuda.get_device_name(arguments.device)
        arguments.json.write_text(json.dumps(setting | {"results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
