"""What `tops reproduce` will do: the runs, their commands, the downloads, and an estimate of the time."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tops_engine.errors import InvalidInput, quote
from tops_engine.evaluation.prunings import resize_label
from tops_engine.methods import METHODS
from tops_engine.reproduction.protocols import VICUNA_SYSTEM_PROMPT, Benchmark, Model, Protocol, read_protocols
from tops_engine.settings import ModelSpec, Pruning
from tops_engine.settings.labels import read_labels
from tops_engine.version import __version__

#: Published bfloat16 throughput of GPUs, in FLOPs a second, and the share of it that a prefill is assumed to reach.
GPUS = {"H100": 990e12, "A100": 312e12, "RTX 4090": 165e12}
ASSUMED_EFFICIENCY = 0.35

#: Text tokens of a prompt with the answer, assumed for the estimate.
TEXT_TOKENS = 80

#: FLOPs of CLIP ViT-L/14 on one tile of 336 x 336 pixels.
TOWER_FLOPS = 0.38e12
TILE_TOKENS = 576

#: The variable without which lmms-eval has no judge.
JUDGE_VARIABLE = "OPENAI_API_KEY"

UNPRUNED = "unpruned"


class Planned(BaseModel):
    """The base class of the parts of a plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PlannedRun(Planned):
    """One pruning on all benchmarks: one call of lmms-eval.

    Attributes
    ----------
    name : the pruning, as rows of the table and folders are named.
    method, budget : None for the unpruned model.
    arguments : model arguments of the call.
    hours : estimated hours by GPU, all benchmarks together.
    """

    name: str
    method: str | None
    budget: int | None
    arguments: dict[str, Any]
    hours: dict[str, float]


class Plan(Planned):
    """Everything that will run; `tops reproduce --dry-run` prints it.

    Attributes
    ----------
    benchmarks : that run, with the number of questions of each.
    skipped : benchmarks of the protocol that do not run, with the reason.
    downloads : what has to be on the hub's cache or is downloaded.
    notes : what differs from the paper, and what is assumed.
    """

    version: str
    paper: str
    model: str
    checkpoint: str
    tables: list[str]
    average: str
    sample: int | None
    dtype: str
    batch_size: int
    seed: int
    benchmarks: dict[str, int]
    skipped: dict[str, str]
    runs: list[PlannedRun]
    downloads: list[str]
    hours: dict[str, float]
    notes: list[str]


def make_plan(
    protocol: Protocol,
    methods: str,
    budgets: Sequence[int],
    spec: ModelSpec,
    benchmarks: Sequence[str] = (),
    sample: int | None = None,
    batch_size: int = 8,
    environment: Mapping[str, str] = os.environ,
) -> Plan:
    """Plan the runs of a protocol.

    Parameters
    ----------
    methods : labels separated by commas, as `tops compare` takes them.
    budgets : layer-averages of visual tokens.
    spec : how the model is loaded.
    benchmarks : in place of those of the protocol.
    sample : only this many questions of each benchmark.
    environment : tells whether there is a judge.

    Raises
    ------
    InvalidInput
        If a benchmark or method is unknown, or none is left.
    """
    known = read_protocols()
    model = known.models[protocol.model]
    wanted = list(benchmarks) or protocol.benchmarks
    _check_benchmarks(wanted, list(known.benchmarks))
    asked, skipped = _with_judge(wanted, known.benchmarks, environment)
    if not asked:
        raise InvalidInput(f"No benchmark is left. {next(iter(skipped.values()))}")
    counts = {name: min(one.questions, sample or one.questions) for name, one in asked.items()}
    runs = [_run(UNPRUNED, model, spec, None, None, counts)]
    for budget in budgets:
        labels = [label for label in read_labels(methods) if not _is_too_small(label, budget, model)]
        runs += [_run(f"{label} {budget}", model, spec, label, budget, counts) for label in labels]
    data = sorted({one.data for one in asked.values() if one.prepare is None})
    downloads = (
        [] if spec.model == "mini" else [f"{spec.model} (about {2 * model.parameters / 1e9:.0f} GB in bfloat16)"]
    )
    return Plan(
        version=__version__,
        paper=protocol.paper,
        model=protocol.model,
        checkpoint=spec.model,
        tables=list(protocol.tables),
        average=protocol.average,
        sample=sample,
        dtype=spec.dtype,
        batch_size=batch_size,
        seed=0,
        benchmarks=counts,
        skipped=skipped,
        runs=runs,
        downloads=[*downloads, *data],
        hours={gpu: sum(run.hours[gpu] for run in runs) for gpu in GPUS},
        notes=_notes(protocol, model, asked, runs),
    )


def _check_benchmarks(wanted: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InvalidInput(f"There is no benchmark {quote(unknown[0])}; there are {', '.join(known)}.")
    if not wanted:
        raise InvalidInput(
            f"The source at hand does not name the benchmarks of this table; name them, such as --benchmarks "
            f"{','.join(known[:4])}."
        )


def budgets_of(protocol: Protocol, keep: str | None) -> list[int]:
    """Return the layer-averages that a text of budgets names: fractions of a picture's tokens, or numbers of tokens.

    Raises
    ------
    InvalidInput
        If a budget is not allowed.
    """
    if keep is None:
        return protocol.budgets
    tokens = read_protocols().models[protocol.model].visual_tokens
    values = [Pruning(keep=part.strip()).budget for part in keep.split(",") if part.strip()]
    budgets = [value if isinstance(value, int) else round(value * tokens) for value in values]
    # Papers round the fraction of the tokens that they keep: 0.056 is 32 of 576.
    return [next((one for one in protocol.budgets if abs(one - budget) <= 0.02 * one), budget) for budget in budgets]


def _with_judge(
    wanted: Sequence[str], known: Mapping[str, Benchmark], environment: Mapping[str, str]
) -> tuple[dict[str, Benchmark], dict[str, str]]:
    """Return the benchmarks that can run, and the reasons of the others."""
    asked, skipped = {}, {}
    for name in wanted:
        if known[name].judge and not environment.get(JUDGE_VARIABLE):
            skipped[name] = (
                f"{name} is scored by another model: set {JUDGE_VARIABLE} (any text if your judge needs no key), and "
                "OPENAI_API_URL for an address of your own."
            )
        else:
            asked[name] = known[name]
    return asked, skipped


def _run(
    name: str,
    model: Model,
    spec: ModelSpec,
    label: str | None,
    budget: int | None,
    counts: Mapping[str, int],
) -> PlannedRun:
    arguments = {"model": spec.model, **spec.model_dump(mode="json", exclude_unset=True, exclude={"model", "unpad"})}
    if not model.unpad:
        arguments["unpad"] = False
    if model.vicuna_system_prompt:
        arguments["system_prompt"] = VICUNA_SYSTEM_PROMPT
    if model.pad_to_square:
        arguments["pad_to_square"] = True
    if label is None or budget is None:
        arguments |= {"method": "none", "keep": 1.0}
    else:
        arguments |= _pruning(label, budget, model)
    hours = _hours(model, _tokens_that_run(label, budget, model), sum(counts.values()))
    return PlannedRun(name=name, method=label, budget=budget, arguments=arguments, hours=hours)


def _pruning(label: str, budget: int, model: Model) -> dict[str, Any]:
    """Return the options of a pruning; TOPS has the paper's own schedule and weights where they are known."""
    preset = f"{model.preset}/{budget}"
    if label == "tops" and preset in METHODS["tops"].presets:
        return {"method": "tops", "schedule": preset}
    return Pruning.from_label(label, budget).model_dump(mode="json", exclude_unset=True)


def _is_too_small(label: str, budget: int, model: Model) -> bool:
    """Return whether a run cannot be made because the smallest picture of the model has more tokens than the budget."""
    return label == resize_label(one_size=False) and budget < model.smallest_picture


def _tokens_that_run(label: str | None, budget: int | None, model: Model) -> int:
    """Return the layer-average of a run: the budget, unless nothing is pruned."""
    if label is None or budget is None or label == resize_label(one_size=True):
        return model.visual_tokens
    return budget


def _hours(model: Model, tokens: int, questions: int) -> dict[str, float]:
    """Estimate the hours of a run: 2 FLOPs a parameter and token, and the vision tower."""
    tower = TOWER_FLOPS * model.visual_tokens / TILE_TOKENS if model.parameters > 1e9 else 0.0
    flops = questions * (2 * model.parameters * (tokens + TEXT_TOKENS) + tower)
    return {gpu: round(flops / (ASSUMED_EFFICIENCY * peak) / 3600, 2) for gpu, peak in GPUS.items()}


def _notes(protocol: Protocol, model: Model, asked: Mapping[str, Benchmark], runs: Sequence[PlannedRun]) -> list[str]:
    notes = [f"{name}: {one.note}" for name, one in asked.items() if one.note]
    assumed = [number for number, source in protocol.tables.items() if source == "assumed"]
    if assumed:
        notes.append(f"Table {', '.join(assumed)}: the number is assumed from the order of the paper's results.")
    if not model.unpad:
        notes.append("Pictures fill 2 x 2 tiles, with padding and without newline tokens: 2,880 visual tokens each.")
    if model.vicuna_system_prompt:
        notes.append("Conversations begin with the system prompt that LLaVA-1.5 was trained with.")
    if model.pad_to_square:
        notes.append("Pictures are padded to a square, as in LLaVA-1.5's own evaluation.")
    if model.smallest_picture > 1:
        notes.append(
            f"resize runs at budgets from {model.smallest_picture} visual tokens on: the smallest picture has as many."
        )
    if any(run.method == resize_label(one_size=True) for run in runs):
        notes.append(
            "resize:enlarge=true saves nothing, since the model brings every picture to one size: it tells which "
            "questions a smaller picture answers."
        )
    if any("schedule" in run.arguments for run in runs):
        notes.append("TOPS runs with the paper's schedules and weights; the table states the true layer-average.")
    notes.append(
        f"Hours are estimates from FLOPs at {100 * ASSUMED_EFFICIENCY:.0f} % of the GPUs' published throughput; data "
        "loading and writing answers come on top. A sample measures the true speed."
    )
    return notes


def folder_of(run: PlannedRun, output: Path) -> Path:
    """Return the folder of a run."""
    return output / run.name.replace(" ", "-").replace(":", "_").replace("/", "_")
