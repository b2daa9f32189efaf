"""The table of speed in README, from the JSON in benchmarks/results."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

#: Shape, name and budget. SmolVLM is the one whose vision tower costs more than its language model.
CPU_SHAPES = (
    ("llava-1.5-7b", "LLaVA-1.5-7B", "0.222"),
    ("llava-1.5-7b", "LLaVA-1.5-7B", "0.111"),
    ("qwen2.5-vl-3b", "Qwen2.5-VL-3B", "0.222"),
    ("smolvlm-256m", "SmolVLM-256M", "0.222"),
)


def speed_rows() -> list[list[str]]:
    """Return the header and rows: what was measured, unpruned, pruned, and how many times better that is."""
    header = ["measured on two cores of a CPU", "unpruned", "pruned", "ratio"]
    return [header, *_cpu_rows(), _video_row(), _serving_row(), _generate_text_row(), _batch_row()]


def _cpu_rows() -> list[list[str]]:
    """Return the rows of published shapes, against the faster one of the unpruned engine and transformers."""
    cells = []
    for shape, name, keep in CPU_SHAPES:
        seconds = {row["way"]: row["first_token"] for row in _results("cpu-shapes") if row["shape"] == shape}
        what = f"{name}¹, `keep={keep}`: seconds to the first token"
        unpruned = min(seconds["unpruned"], seconds["transformers generate"])
        cells.append(_less(what, unpruned, seconds[f"tops {keep}"]))
    return cells


def _video_row() -> list[str]:
    seconds = {
        row["side"]: sum(row["seconds"].values())
        for row in _results("tower", "times")
        if row["shape"] == "qwen2.5-vl-3b" and row["kind"].startswith("screen recording")
    }
    side = "keep 0.222, dedup, tower_keep 0.5"
    what = "Qwen2.5-VL-3B¹, screen recording, `keep=0.222`, `dedup=exact`, `tower_keep=0.5`: seconds of an answer"
    return _less(what, seconds["unpruned"], seconds[side])


def _serving_row() -> list[str]:
    rows = [row for row in _results("serving-small") if (row["pictures"], row["block_size"]) == ("distinct", 128)]
    rates = {row["keep"]: row for row in rows if row["concurrency"] == 8}
    values = [f"{rates[keep]['requests_a_second']:.1f}" for keep in ("1.0", "0.222")]
    what = "vLLM², 8 requests at once, `keep=0.222`: requests a second"
    return [what, *values, f"{rates['0.222']['rate_ratio']:.1f}"]


def _generate_text_row() -> list[str]:
    rows = {row["side"]: row["first_token_seconds"] for row in _results("generate-text", "rows")}
    what = "ComfyUI's Generate Text, Qwen3-VL-4B¹, `keep=0.222`: seconds to the first token"
    return _less(what, rows["ComfyUI alone"], rows["keep 0.222"])


def _batch_row() -> list[str]:
    rates = {
        row["keep"]: row["pictures_a_second"]
        for row in _results("throughput")
        if row["batch"] == 32 and row.get("tower_keep", 1.0) == 1.0
    }
    what = "embedded model mini, batches of 32, `keep=0.111`: pictures a second"
    return [what, f"{rates[1.0]:.1f}", f"{rates[0.111]:.1f}", f"{rates[0.111] / rates[1.0]:.1f}"]


def _less(what: str, unpruned: float, pruned: float) -> list[str]:
    """Return a row of something that is better when it is less."""
    return [what, f"{unpruned:.1f}", f"{pruned:.1f}", f"{unpruned / pruned:.1f}"]


def _results(name: str, key: str = "results") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))[key]
    return rows
