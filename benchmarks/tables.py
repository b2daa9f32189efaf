"""What the tables of docs/performance.md share."""

from collections.abc import Sequence
from typing import Any

from benchmarks.latency import PARTS

#: The vision part is the vision tower with the projector.
PART_HEADINGS = ["prepare ms", "tower ms", "selection ms", "prefill ms", "decode ms"]


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---:" if index else "---" for index in range(len(header))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.1f}"


def machine(result: dict[str, Any]) -> str:
    load = result.get("load_average") or ["?"]
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    return (
        f"{result.get('gpu', result['cpu'])}, {threads} of {result['cores']} cores, torch "
        f"{result['torch']}; load average of the machine: {load[0]}."
    )


def parts_of(seconds: dict[str, float] | None) -> list[str]:
    """Return the milliseconds of each part of an answer that was measured, and the largest of several parts."""
    seconds = seconds or {}
    measured = [part for part in PARTS if part in seconds]
    largest = max(measured, key=lambda part: seconds[part]) if len(measured) > 1 else "-"
    return [*(ms(seconds.get(part)) for part in PARTS), "tower" if largest == "vision" else largest]


def rounds_of(rows: Sequence[dict[str, Any]]) -> str:
    """Say how many rounds the rows of a table are medians of."""
    counts = sorted({row["rounds"] for row in rows})
    numbers = " or ".join(map(str, counts))
    return f"Medians of {numbers} round{'s' if counts[-1] > 1 else ''} in turns."
