"""The tables of docs/performance.md about hosts of other projects: vLLM's servers and ComfyUI's Generate Text."""

from typing import Any

from benchmarks.tables import machine, table

SERVING = """## Serving with vLLM

vLLM servers answered the same requests at several budgets in turns (`benchmarks/serving.py`): first distinct pictures,
then four pictures that are repeated with new questions, which vLLM's caches answer. `none` is a server without TOPS.
Answers have 8 tokens. Rates are medians over rounds, and so are their ratios to the first budget of the same requests.
Times are medians over requests; p99 is that of the first token. `block` is the size of the KV cache's blocks in tokens,
`prompt` the number of tokens that are read. A server does not report the parts of a request.

`small` has LLaVA-1.5's 576 tokens a picture and its vision tower's share of the work, but 40 million random weights.
As in a 7B model, most of a request is reading the visual tokens. `small-next` is the same in the layout of LLaVA-NeXT.
Where the load average below a table is above 3, other work ran on the machine: only ratios far from 1 are meaningful.
"""

ENCODERS = """### Encoders and a server without the plugin

A server with the plugin, and encoders that send kept tokens to a server without it, answered the same requests in turns
on the same cores (`benchmarks/encoders.py`). The time to the first token includes the encoding.
"""

#: The files of `benchmarks/serving.py`, in the order of the page.
SERVED = ("serving", "serving-small", "serving-small-next", "serving-llava-onevision-0.5b")

GENERATE_TEXT = """## ComfyUI's Generate Text

ComfyUI's own Generate Text node without TOPS Prune LLM, behind it at keep 1.0, and behind it pruned, in turns
(`benchmarks/generate_text.py`), with random weights of the shape of Qwen3-VL-4B in bfloat16. ComfyUI computes them in
float32 on a CPU. Times include the vision tower, which reads the whole picture on all sides.
"""


def serving(result: dict[str, Any]) -> str:
    """Return one row for each budget, in turns of the same pictures and number of requests."""
    header = [
        "pictures",
        "at once",
        "block",
        "keep",
        "requests a second",
        "first token ms",
        "p99",
        "next token ms",
        "prompt",
    ]
    rows = [
        [
            row["pictures"],
            str(row["concurrency"]),
            str(row["block_size"]),
            row["keep"],
            f"{row['requests_a_second']:.3g} ({row['rate_ratio']:.2f} x)",
            f"{1e3 * row['first_token_s']:.1f} ({row['first_token_ratio']:.2f} x)",
            f"{1e3 * row['first_token_p99_s']:.1f}" if "first_token_p99_s" in row else "-",
            f"{1e3 * row['next_token_s']:.1f}",
            f"{row['prompt_tokens']:.0f}",
        ]
        for row in result["results"]
    ]
    return f"### {result['model']}\n\n{table(header, rows)}\n\n{machine(result)}\n"


def encoders(result: dict[str, Any]) -> str:
    """Return one row for the plugin and one for the encoders, in turns of the same requests."""
    header = ["pictures", "at once", "pruned by", "requests a second", "first token ms", "p99", "next token ms"]
    rows = [
        [
            row["pictures"],
            str(row["concurrency"]),
            f"{result['encoders']} encoders" if row["side"] == "encoders" else "the plugin",
            f"{row['requests_a_second']:.3g} ({row.get('rate_ratio', 1):.2f} x)",
            *(f"{1e3 * row[name]:.1f}" for name in ("first_token_s", "first_token_p99_s", "next_token_s")),
        ]
        for row in result["results"]
    ]
    sizes = result["bytes_of_a_request"]
    about = (
        f"`{result['model']}`, keep {result['keep']}. A request has {sizes['plugin']:,} bytes with its picture and "
        f"{sizes['encoders']:,} with the kept tokens."
    )
    return f"{ENCODERS}\n{about}\n\n{table(header, rows)}\n\n{machine(result)}\n"


def generate_text(result: dict[str, Any]) -> str:
    """Return one row for ComfyUI alone and one for each budget."""
    rows = []
    for row in result["rows"]:
        kept = " / ".join(map(str, row["kept"])) if row["kept"] else "all"
        seconds = [f"{row[name]:.1f}" for name in ("first_token_seconds", "seconds")]
        ratios = [f"{row[name]:.2f} x" for name in ("times_faster_to_the_first_token", "times_faster")]
        same = "yes" if row["same_tokens_as_comfyui"] else "no"
        rows.append([row["side"], kept, seconds[0], ratios[0], seconds[1], ratios[1], same])
    setup = result["setup"]
    header = ["side", "visual tokens by layers", "first token s", "faster", "answer s", "faster", "ComfyUI's tokens"]
    return (
        f"{GENERATE_TEXT}\n{table(header, rows)}\n\nA picture of {setup['size']} pixels, answers of {setup['tokens']} "
        f"tokens, medians of {setup['rounds']} rounds. {machine(result['machine'])}\n"
    )
