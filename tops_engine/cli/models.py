"""`tops models`."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tops_engine.cli.app import app
from tops_engine.cli.output import out
from tops_engine.methods import METHODS

if TYPE_CHECKING:
    from tops_engine.supported_models import Savings


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """List the models that run, the methods that apply to each, what tests show of them, and what pruning saves."""
    from tops_engine.supported_models import model_types, recorded_savings

    rows = model_types()
    if as_json:
        print(json.dumps([row.model_dump() for row in rows], indent=2))
        return
    _print_curated()
    table = Table("Model type", "Checkpoints (others of their layout load too)", "Methods", "Videos", "Checked")
    table.show_lines = True
    for row in rows:
        methods = f"all but {', '.join(row.other_methods)}" if row.other_methods else "all"
        videos = "yes" if row.videos else "no"
        table.add_row(
            row.model_type, "\n".join(row.checkpoints), methods, videos, "\n".join(row.checked) or "not tested"
        )
    out.print(table)
    out.print(f"Pruning methods: {', '.join(METHODS)}.", highlight=False)
    out.print(
        "Checked on small random checkpoints in the published layouts. Unpruned as generate: the answer equals that of "
        "transformers' generate, token for token. Pruned as a masked reference: the answer equals that of a slow run "
        "that hides the dropped tokens from attention. Batches as singles: a batch gives the answers that its "
        "conversations get alone.",
        style="dim",
    )
    savings = recorded_savings()
    out.print(f"\nWhat keep={savings.keep} saves, by formula, for {savings.question}:", highlight=False)
    out.print(_savings_table(savings.rows))
    out.print(
        "Prefill: FLOPs of the language model for reading the prompt. KV cache: bytes at the end of the answer. Whole "
        "answer: FLOPs of vision tower, prefill and decoding; pruning does not change the vision tower.",
        style="dim",
    )


def _print_curated() -> None:
    from tops_engine.curated_models import PRECISIONS, QUESTION_GB, curated_models
    from tops_engine.device.memory import total_memory
    from tops_engine.loading import resolve_device

    device = resolve_device("auto")
    memory = total_memory(device)
    table = Table("Checkpoint", "Good at", "Licence", "Download", *PRECISIONS, "This machine")
    table.columns[0].no_wrap = True  # ids are copied
    for model in curated_models():
        sizes = [f"{size:.1f}" for size in (model.download_gb, *(model.memory_gb[one] for one in PRECISIONS))]
        fit = model.fit(memory)
        style = "dim" if model.fits_as(memory) is None else None
        table.add_row(model.name, model.good_at, model.licence, *sizes, fit, style=style)
    out.print(f"Models to start with. Gigabytes; {device.type} here has {memory / 1e9:.1f}.", highlight=False)
    out.print(table)
    out.print(
        f"Memory: the weights in each precision (--dtype, --quantization); a question takes about {QUESTION_GB} GB "
        "more. GGUF files are not read: name the safetensors checkpoint that they were made from, with --quantization "
        "4bit.\n",
        style="dim",
        highlight=False,
    )


def _savings_table(rows: "Sequence[Savings]") -> Table:
    """Return a table in the order of the rows: those that save most of a whole answer first."""
    table = Table("Checkpoint", "Model type")
    for column in ("Visual tokens", "Prefill", "with stages=first", "KV cache", "Whole answer"):
        table.add_column(column, justify="right")
    for row in rows:
        shares = (row.prefill, row.prefill_first, row.kv, row.answer)
        percent = (f"{100 * share:.0f} %" for share in shares)
        table.add_row(row.checkpoint, row.model_type, f"{row.visual_tokens:,}", *percent)
    return table
