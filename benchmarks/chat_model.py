"""Compare a batch of 8 of the chat model with 8 calls in a row: time to the first tokens and total time.

    python benchmarks/chat_model.py --json benchmarks/results/chat_model.json

Each question is about another picture, and nothing is cached from earlier questions. The two forms run in turns; times
are medians over the repeats, in seconds from the start of all 8. In a batch all questions get their first token at
once; the figure for single calls is the mean over the 8, each of which waits for those before it.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import torch
from langchain_core.messages import HumanMessage
from langchain_tops import ChatTOPSLlava, image_block
from rich.console import Console
from rich.table import Table

from tops_engine import ModelSpec, shared_engine
from tops_engine.mini.scenes import generate

NUM = 8
PROMPTS = {"short answers": "What number is written?", "long answers": "Describe the picture."}


def one_by_one(model: ChatTOPSLlava, questions: list[Any]) -> dict[str, Any]:
    """Measure streamed calls in a row."""
    start = perf_counter()
    first: list[float] = []
    texts: list[str] = []
    for question in questions:
        pieces: list[str] = []
        for chunk in model.stream(question):
            if not pieces:
                first.append(perf_counter() - start)
            pieces.append(chunk.text)
        texts.append("".join(pieces))
    return {"total": perf_counter() - start, "first": mean(first), "texts": texts}


def together(model: ChatTOPSLlava, questions: list[Any]) -> dict[str, Any]:
    """Measure one batch."""
    start = perf_counter()
    answers = model.batch(questions)
    total = perf_counter() - start
    timings = answers[0].response_metadata["timings"]
    # The engine's own clock gives its time before and after the first token; the rest is LangChain's.
    return {"total": total, "first": total - timings["decode"], "texts": [answer.text for answer in answers]}


def measure(model: ChatTOPSLlava, name: str, repeats: int) -> dict[str, Any]:
    engine = shared_engine(ModelSpec(model=model.model))
    pictures = [image_block(generate(seed, "test").image) for seed in range(NUM)]
    text = {"type": "text", "text": PROMPTS[name]}
    questions = [[HumanMessage([picture, text])] for picture in pictures]
    forms = {"single": one_by_one, "batch": together}
    runs: dict[str, list[dict[str, Any]]] = {form: [] for form in forms}
    for repeat in range(repeats + 1):
        for form, run in forms.items():
            engine.forget()
            result = run(model, questions)
            if repeat:  # the first run includes starting threads and libraries
                runs[form].append(result)
    row: dict[str, Any] = {"questions": name, "keep": model.keep, "repeats": repeats}
    for form, results in runs.items():
        for figure in ("first", "total"):
            row[f"{form}_{figure}_s"] = median(result[figure] for result in results)
    row["same_texts"] = runs["single"][0]["texts"] == runs["batch"][0]["texts"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    models = [ChatTOPSLlava(model=arguments.model, keep=keep, max_tokens=64) for keep in (1.0, 0.222)]
    rows = [measure(model, name, arguments.repeats) for name in PROMPTS for model in models]
    table = Table(title=f"{NUM} questions to {arguments.model}, {torch.get_num_threads()} threads")
    columns = (
        "questions",
        "keep",
        "first, single",
        "first, batch",
        "total, single",
        "total, batch",
        "ratio",
        "same texts",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        seconds = [row[key] for key in ("single_first_s", "batch_first_s", "single_total_s", "batch_total_s")]
        ratio = f"{row['single_total_s'] / row['batch_total_s']:.2f}x"
        table.add_row(
            row["questions"],
            str(row["keep"]),
            *(f"{second:.3f} s" for second in seconds),
            ratio,
            "yes" if row["same_texts"] else "NO",
        )
    Console(width=120).print(table)
    if arguments.json:
        result = {"torch": torch.__version__, "threads": torch.get_num_threads(), "results": rows}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
