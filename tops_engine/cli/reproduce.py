"""`tops reproduce`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tops_engine.cli.app import app
from tops_engine.cli.options import takes_settings
from tops_engine.cli.output import METHODS_HELP, err, out
from tops_engine.cli.tables import rich_table
from tops_engine.settings import ModelSpec


@app.command()
@takes_settings
def reproduce(
    spec: ModelSpec,
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="The model in the paper, such as llava-1.5-7b, or mini.")
    ],
    table: Annotated[str | None, typer.Option(help="Number of the table in the paper.")] = None,
    paper: Annotated[str | None, typer.Option(help="arXiv number; 2502.11501, 2409.10197. [default: TOPS]")] = None,
    keep: Annotated[str | None, typer.Option(help="Budgets, separated by commas. [default: the paper's]")] = None,
    methods: Annotated[
        str | None, typer.Option(help=METHODS_HELP + " [default: tops, and resize to tell easy from hard questions]")
    ] = None,
    benchmarks: Annotated[
        str | None, typer.Option(help="Benchmarks, separated by commas. [default: the paper's]")
    ] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Only this many questions of each benchmark.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that are answered together.")] = 8,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan as JSON and run nothing.")] = False,
    python: Annotated[str, typer.Option(help="The Python that has lmms-eval. [default: this one]")] = sys.executable,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the results; a stopped run continues it.")
    ] = Path("reproduction"),
) -> None:
    """Run a paper's table with lmms-eval: ours, the paper's, the difference, with intervals.

    `make eval` makes an environment with lmms-eval; --python names it.
    """
    from tops_engine.evaluation.halves import halves_table
    from tops_engine.evaluation.prunings import resize_label
    from tops_engine.reproduction.judge import check_judge
    from tops_engine.reproduction.plan import budgets_of, make_plan
    from tops_engine.reproduction.protocols import find_protocol, read_protocols
    from tops_engine.reproduction.run import (
        check_memory,
        hours_of_all,
        judged,
        layer_averages,
        origin,
        run_plan,
        versions_of,
    )
    from tops_engine.reproduction.table import reproduction_halves, reproduction_table

    protocol = find_protocol(name, table, paper)
    model = read_protocols().models[name]
    methods = methods or f"tops,{resize_label(model.one_size)}"
    chosen = spec if "model" in spec.model_fields_set else spec.model_copy(update={"model": model.checkpoint})
    wanted = [one.strip() for one in (benchmarks or "").split(",") if one.strip()]
    plan = make_plan(protocol, methods, budgets_of(protocol, keep), chosen, wanted, sample, batch_size)
    if dry_run:
        out.print(plan.model_dump_json(indent=2), markup=False, highlight=False, soft_wrap=True)
        return
    for line in (f"Downloads: {', '.join(plan.downloads) or 'none'}.", f"Estimated hours: {plan.hours}", *plan.notes):
        err.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
    check_memory(plan, chosen)
    check_judge(judged(plan))
    try:
        scores = run_plan(plan, output, python)
    except (SystemExit, KeyboardInterrupt):
        err.print(f"Stopped; the same command continues {output}.", highlight=False, soft_wrap=True)
        raise
    averages, hours = layer_averages(plan, output), hours_of_all(plan, output)
    made = origin(plan, versions_of(python), " ".join(["tops", *sys.argv[1:]]))
    out.print(rich_table(reproduction_table(plan, protocol, scores, averages, hours, made)))
    halves = halves_table(reproduction_halves(plan, scores), "score")
    if halves is not None:
        out.print(rich_table(halves))
