"""Write docs/performance.md and its plot from the JSON in benchmarks/results.

    python -m benchmarks.performance

Every figure of the page comes from a file. The page marks figures without a file as not measured.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.cpu_shapes import SHAPES
from benchmarks.served_tables import SERVED, SERVING, encoders, generate_text, serving
from benchmarks.tables import PART_HEADINGS, machine, ms, parts_of, rounds_of, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE, PLOT = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.png"

HEAD = """# Performance

`python -m benchmarks.performance` writes this page from the files in `benchmarks/results`. Times are medians of runs
that took turns in one process. [Notes on speed](../benchmarks/NOTES.md) compares expectations with measurements and
lists what did not help.

Where the page times whole answers, it gives all their parts: preparing (the template, the tokenizer, the image
processor), the vision tower with the projector, choosing tokens, reading the prompt (prefill) and writing the answer
(decode). The largest part of a pruned answer is what pruning more cannot shorten.

## What was not measured

- Nothing on this page is from a GPU. The aims for LLaVA-NeXT-7B on an H100 are open: selection in 1.5 ms, five times
  faster to the first token, 60 % of the memory bandwidth while writing, three times the captions a second.
- The CUDA graph that writes answers, and scaling pictures on a GPU, were not run on one. Neither were the CUDA graphs
  of prompts and the kernel for thread block clusters, which are switched off until they have run.
- mini has a few million weights. Calls of small operations take most of its time, so pruning saves far less on mini
  than on a model of 7 billion weights.
"""

TOWER = """The share of patches that towers encode with `dedup`, of pages of this documentation rendered in Chromium,
drawn receipts, screenshots of Studio and ComfyUI, charts, photographs and two videos of 16 frames (`python -m
benchmarks.tower`). Where `exact` leaves patches out, the FLOPs of the tower fall by the same share. Those of
`patches` are computed for the published towers by formula. Its error is the mean relative distance of the tokens from
those of the whole tower, with random weights of five times their usual size in two narrow layers. It shows that the
form is approximate, not what it costs a trained model.

Whole tiles of real pictures are hardly ever equal. So `exact` pays for videos that stand still, blank paper and
pictures that are asked about several times.
"""

PREPARING = "Preparing a photograph of 1280 x 960 pixels, the same bits on both sides, in processor time:\n"


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def measured(name: str) -> bool:
    """Return whether a measurement has a file."""
    return (RESULTS / f"{name}.json").exists()


def latency(result: dict[str, Any]) -> str:
    rows = []
    for row in result["results"]:
        seconds = row["seconds"]
        *parts, largest = parts_of(seconds)
        first = [ms(seconds["first_token"]), f"{100 * row['first_token_ratio']:.0f} %"]
        whole = [ms(seconds.get("answer")), f"{100 * row['answer_ratio']:.0f} %" if "answer_ratio" in row else "-"]
        rows.append([row["side"], *parts, *first, *whole, largest])
    header = [result["model"], *PART_HEADINGS, "first token ms", "of unpruned"]
    header += ["answer ms", "of unpruned", "largest part"]
    return (
        f"## One answer\n\n{table(header, rows)}\n\nThe first token is counted from vision on, an answer of "
        f"{result['tokens']} tokens from preparing on. {machine(result)}\n"
    )


def encoded_share(row: dict[str, Any]) -> str:
    """Return how many of the patches a tower encodes; where the features change, also its FLOPs and the error."""
    share = f"{100 * row['encoded'] / row['patches']:.0f} %"
    if row["dedup"] == "exact":
        return share
    flops = 100 * (1 - row["saved_flops"] / row["flops"])
    return f"{share} (FLOPs {flops:.0f} %, error {row['relative_error']:.3f})"


def tower(result: dict[str, Any]) -> str:
    """Return what equal patches save, the time of the image processors and the parts of answers with both options."""
    text = "## Before and inside the vision tower\n\n" + TOWER
    columns = list(dict.fromkeys((row["shape"], row["dedup"]) for row in result["shares"]))
    cells = {(row["kind"], row["shape"], row["dedup"]): encoded_share(row) for row in result["shares"]}
    header = ["picture", *(f"{shape}, {dedup}" for shape, dedup in columns)]
    rows = [
        [kind, *(cells.get((kind, *column), "-") for column in columns)]
        for kind in dict.fromkeys(row["kind"] for row in result["shares"])
    ]
    text += f"\n{table(header, rows)}\n\n{PREPARING}\n"
    host = [[row["shape"], f"{row['transformers_ms']:.1f}", f"{row['ours_ms']:.1f}"] for row in result["host"]]
    text += f"{table(['image processor', 'transformers ms', 'ours ms'], host)}\n\n{machine(result['host_machine'])}\n"
    if "times" not in result:
        return text
    header = ["model", "picture", "", *PART_HEADINGS, "of unpruned", "largest part"]
    timed = []
    for row in result["times"]:
        *parts, largest = parts_of(row["seconds"])
        timed.append([row["shape"], row["kind"], row["side"], *parts, f"{100 * row['ratio']:.0f} %", largest])
    about = result["times_machine"]
    return (
        f"{text}\nAll parts of an answer of {about['tokens']} tokens with random weights ({about['dtype']}):\n\n"
        f"{table(header, timed)}\n\n{rounds_of(result['times'])} {machine(about)}\n"
    )


def decoding(result: dict[str, Any]) -> str:
    rows = []
    for row in result["results"]:
        seconds, floor = row["seconds"]["next_token"], row["next_token_floor_s"]
        rows.append([row["side"], ms(seconds), ms(floor), f"{100 * floor / seconds:.0f} %"])
    header = [f"{result['model']}, {result['dtype']}", "next token ms", "floor ms", "floor / measured"]
    return (
        f"## Writing the answer\n\n{table(header, rows)}\n\n{result['text']} tokens of text, random weights. The floor "
        f"is the time to read the weights, keys and values of a token at {result['bytes_a_second'] / 1e9:.1f} GB/s, "
        f"the best rate of the run. Compiling is for GPUs; on a CPU it neither helps nor hurts. {machine(result)}\n"
    )


def shapes(result: dict[str, Any]) -> str:
    rows, cannot = [], []
    for row in result["results"]:
        if "error" in row:
            cannot.append(f"{row['way']} cannot run on {row['shape']}: {row['error'].rstrip('.')}. ")
            continue
        unpruned = next(r for r in result["results"] if (r["shape"], r["way"]) == (row["shape"], "unpruned"))
        ratios = [f"{100 * row[name] / unpruned[name]:.0f} %" for name in ("first_token", "answer")]
        *parts, largest = parts_of(row)
        whole = [ms(row["first_token"]), ratios[0], ms(row["next_token"]), ms(row["answer"]), ratios[1]]
        rows.append([row["shape"], row["way"], *parts, *whole, largest])
    header = ["shape", "way", *PART_HEADINGS, "first token ms", "of unpruned", "next token ms", "answer ms"]
    header += ["of unpruned", "largest part"]
    measured = dict.fromkeys(row["shape"] for row in result["results"])
    missing = [name for name in SHAPES if name not in measured and name != "small"]
    left_out = f"Not measured: {', '.join(missing)}. " if missing else ""
    return (
        f"## Published shapes on a CPU\n\n{table(header, rows)}\n\nRandom weights in {result['dtype']}, answers of "
        f"{result['tokens']} tokens (`python -m benchmarks.cpu_shapes`). {rounds_of(result['results'])} FastV and "
        f"VisionZip are the forms of this engine. {''.join(cannot)}{result.get('note', '')}{left_out}"
        f"{machine(result['machine'])}\n"
    )


def reuse(result: dict[str, Any]) -> str:
    rows = []
    for row in result["results"]:
        for question in ("first", "second"):
            ratio = 1.0 if question == "first" else row["ratio"]
            *parts, largest = parts_of(row[f"{question}_parts_s"])
            times = [ms(row[f"{question}_s"]), f"{100 * ratio:.0f} %", largest]
            rows.append([str(row["keep"]), question, *parts, *times])
    header = ["keep", "question", *PART_HEADINGS, "first token ms", "of the first", "largest part"]
    return (
        f"## A second question about the same picture ({result['model']})\n\n{table(header, rows)}\n\n"
        f"{machine(result)} The aim is 40 % at keep 0.222.\n"
    )


def throughput(result: dict[str, Any]) -> str:
    base = result["results"][0]["pictures_a_second"]
    rows = [
        [
            str(row["batch"]),
            str(row["keep"]),
            str(row.get("tower_keep", 1.0)),
            *parts_of(row.get("seconds")),
            f"{row['pictures_a_second']:.1f}",
            f"{row['pictures_a_second'] / base:.2f}",
        ]
        for row in result["results"]
    ]
    header = ["batch", "keep", "tower_keep", *PART_HEADINGS, "largest part"]
    header += ["pictures a second", "relative to the first row"]
    return (
        f"## Many pictures ({result['model']})\n\n{table(header, rows)}\n\nThe parts are those of one picture: of a "
        f"batch, divided by its size. {machine(result)}\n"
    )


def selection(result: dict[str, Any]) -> str:
    rows = [
        [
            f"{row['tokens']} to {row['keep']}, {row['dtype']}",
            ms(row["similarity_s"]),
            ms(row["incremental_s"]),
            ms(row["reference_s"]),
            {None: "-", True: "yes", False: "NO"}[row["same_indices"]],
        ]
        for row in result["results"]
    ]
    header = ["tokens", "similarity ms", "in all ms", "algorithm as published ms", "same tokens"]
    return f"## Greedy selection on the CPU\n\n{table(header, rows)}\n\n{machine(result)}\n"


def draw(result: dict[str, Any]) -> None:
    """Draw the parts of the time to the first token as stacked bars."""
    import matplotlib.pyplot as plt

    rows = [row for row in result["results"] if "vision" in row["seconds"]]
    names = [row["side"] for row in rows]
    figure, axes = plt.subplots(figsize=(7, 2.6))
    start = [0.0] * len(rows)
    for part, colour in (("vision", "#7a8ca5"), ("selection", "#d2783c"), ("prefill", "#3c78b4")):
        widths = [1e3 * row["seconds"][part] for row in rows]
        axes.barh(names, widths, left=start, label=part, color=colour)
        start = [left + width for left, width in zip(start, widths, strict=True)]
    whole = next(row for row in result["results"] if row["side"].startswith("transformers"))
    axes.axvline(1e3 * whole["seconds"]["first_token"], color="black", linestyle=":", label=whole["side"])
    axes.invert_yaxis()
    axes.set_xlabel(f"milliseconds to the first token, {result['model']}")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(PLOT, dpi=140, bbox_inches="tight")
    plt.close(figure)


def page() -> str:
    """Return the text of the page."""
    parts = [HEAD, latency(read("latency")), f"![What the time to the first token is made of]({PLOT.name})\n"]
    parts += [tower(read("tower")), decoding(read("decode")), shapes(read("cpu-shapes"))]
    parts += [reuse(read("reuse")), throughput(read("throughput"))]
    parts += [SERVING, *(serving(read(name)) for name in SERVED if measured(name))]
    parts += [encoders(read(name)) for name in ("encoders-small",) if measured(name)]
    parts += [generate_text(read(name)) for name in ("generate-text",) if measured(name)]
    parts += [selection(read("selection"))]
    return "\n".join(parts)


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    draw(read("latency"))


if __name__ == "__main__":
    main()
