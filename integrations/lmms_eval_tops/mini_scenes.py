"""A task of lmms-eval with mini's scenes: python -m lmms_eval_tops.mini_scenes FOLDER --scenes 20

Writes a Hugging Face data set (a Parquet file with pictures) and the task's YAML into a folder:
``lmms-eval eval --model tops --model_args model=mini,keep=0.222 --tasks tops_mini_scenes --include_path FOLDER``.
The questions are those of ``tops bench`` about the same scenes, and so is what counts as right.
"""

import argparse
from pathlib import Path
from typing import Any

from tops_engine.bench.run import GENERATION
from tops_engine.bench.splits import FIRST_SEEDS
from tops_engine.mini.questions import KINDS, Question
from tops_engine.mini.scenes import generate, is_correct

TASK = "tops_mini_scenes"


def write_task(folder: Path, num_scenes: int) -> None:
    """Write the questions about the first ``num_scenes`` test scenes, and the task that asks them."""
    from datasets import Dataset, Features, Image, Value

    rows = []
    for seed in range(FIRST_SEEDS["test"], FIRST_SEEDS["test"] + num_scenes):
        scene = generate(seed, "test")
        rows += [
            {"scene": seed, "image": scene.image, "kind": one.kind, "question": one.text, "answer": one.answer}
            for one in scene.questions
        ]
    text = dict.fromkeys(("kind", "question", "answer"), Value("string"))
    features = Features({"scene": Value("int64"), "image": Image(), **text})
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(folder / "test.parquet")
    (folder / f"{TASK}.yaml").write_text(_yaml(folder.resolve()), encoding="utf-8")


def visual_of(document: dict[str, Any]) -> list[Any]:
    """Return the picture of a question."""
    return [document["image"].convert("RGB")]


def text_of(document: dict[str, Any]) -> str:
    """Return the question."""
    return str(document["question"])


def results_of(document: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """Return whether the answer is right, over all questions and under its kind."""
    question = Question(document["kind"], document["question"], document["answer"], subject=())
    right = float(is_correct(question, answers[0]))
    return {"all": right, document["kind"]: right}


def _yaml(folder: Path) -> str:
    metrics = "".join(
        f"  - metric: {name}\n    aggregation: mean\n    higher_is_better: true\n" for name in ("all", *KINDS)
    )
    return (
        f"task: {TASK}\n"
        f"dataset_path: {folder.as_posix()}\n"
        "test_split: test\n"
        "output_type: generate_until\n"
        "doc_to_visual: !function lmms_eval_tops.mini_scenes.visual_of\n"
        "doc_to_text: !function lmms_eval_tops.mini_scenes.text_of\n"
        "doc_to_target: answer\n"
        "process_results: !function lmms_eval_tops.mini_scenes.results_of\n"
        f"generation_kwargs:\n  max_new_tokens: {GENERATION.max_tokens}\n  do_sample: false\n"
        f"metric_list:\n{metrics}"
        "metadata:\n  - version: 1.0\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=20)
    arguments = parser.parse_args()
    write_task(arguments.folder, arguments.scenes)


if __name__ == "__main__":
    main()
