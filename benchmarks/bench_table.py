"""Write docs/methods.md and docs/methods.png from the output of `tops bench --methods ... --json`.

python benchmarks/bench_table.py benchmarks/results/mini-methods.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from tops_engine.bench.report import BenchResult

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]

HEAD = """# Methods on the embedded model

`tops bench` measured these methods at the same budgets: {questions} questions about {scenes} scenes that mini has
never seen. The tables show accuracy in percent of the unpruned model's ({unpruned:.1f} % of its answers are right),
by kind of question and in all. *loss +* says how much less likely the unpruned model's own answers become, in nats a
token. A method that cannot meet a budget lets its first layers see all tokens.

**Noise.** One point of "all" is about {point:.0f} answers. A paired 95 % interval for a difference between two
methods on 731 questions is 2 to 3.5 points wide on either side. Smaller differences in these tables show nothing.

**What the tables say.** mini is small, was trained with dropped tokens, and has 144 visual tokens and 8 layers. The
tables say which tokens a method keeps, not what a 7B model loses. `trim` and `cdpruner` read the question with a text
tower that was trained on where the objects are, so they do better here than CLIP would make them.

`benchmarks/bench_table.py` writes this page from [{source}](../benchmarks/results/{source}).

![Accuracy and loss against the budget](methods.png)

"""


def table(rows: list[Row], unpruned: Row, kinds: list[str]) -> str:
    """Return the rows of one budget as a Markdown table, best method first."""
    lines = ["| method | " + " | ".join([*kinds, "all", "loss +"]) + " |", "|---|" + "---:|" * (len(kinds) + 2)]
    met = sorted((row for row in rows if row["accuracy"]), key=lambda row: -row["relative"])
    for row in met:
        cells = [100 * row["accuracy"][kind] / unpruned["accuracy"][kind] for kind in [*kinds, "all"]]
        texts = [f"{cell:.1f}" for cell in cells] + [f"{row['loss_increase']:.3f}"]
        lines.append(f"| `{row['method']}` | " + " | ".join(texts) + " |")
    missed = [f"`{row['method']}`" for row in rows if not row["accuracy"]]
    if missed:
        lines.append(f"\nCannot meet this budget: {', '.join(missed)}.")
    return "\n".join(lines)


def main() -> None:
    write(Path(sys.argv[1]))


def write(source: Path) -> None:
    """Write the page and the plot of the results in a file."""
    result = json.loads(source.read_text())
    unpruned, *others = result["rows"]
    questions = sum(result["num_questions"].values())
    right = unpruned["accuracy"]["all"]
    point = questions * right / 100
    text = HEAD.format(
        questions=questions, scenes=result["num_scenes"], unpruned=100 * right, point=point, source=source.name
    )
    kinds = list(result["num_questions"])
    budgets = dict.fromkeys(row["keep"] for row in others if row["keep"] is not None)
    for budget in budgets:
        rows = [row for row in others if row["keep"] == budget]
        text += f"\n## keep {budget}\n\n{table(rows, unpruned, kinds)}\n"
    (ROOT / "docs" / "methods.md").write_text(text)
    shown = BenchResult.model_validate(result)
    plain = [row for row in shown.rows if row.keep is None or ":" not in row.method]
    shown.model_copy(update={"rows": plain}).plot(ROOT / "docs" / "methods.png")


if __name__ == "__main__":
    main()
