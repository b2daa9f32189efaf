"""Run a plan with lmms-eval, one call for each pruning; a stopped run continues."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tops_engine.device.memory import total_memory
from tops_engine.errors import InvalidInput, MissingDependency, TopsError
from tops_engine.journal import Journal
from tops_engine.loading import resolve_device
from tops_engine.progress import Progress, no_progress
from tops_engine.reproduction.judge import check_judged
from tops_engine.reproduction.plan import Plan, PlannedRun, folder_of
from tops_engine.reproduction.protocols import Benchmark, read_protocols
from tops_engine.reproduction.scores import Scored, read_samples, score
from tops_engine.settings import ModelSpec

HEADER = "tops reproduce 1"

#: Packages whose versions a table states.
PACKAGES = ("lmms-eval", "torch", "transformers")

#: Bytes of a weight by quantisation, and the room for keys, values and pictures beside the weights.
BYTES_A_WEIGHT = {None: 2.0, "8bit": 1.1, "4bit": 0.6}
ROOM = 1.15


def versions_of(python: str) -> dict[str, str]:
    """Return the versions of lmms-eval and of what it runs on, as an interpreter has them.

    Raises
    ------
    MissingDependency
        If it has no lmms-eval, or is no interpreter.
    """
    program = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    try:
        done = subprocess.run([python, "-c", program, *PACKAGES], check=False, capture_output=True, text=True)
    except OSError:
        done = None
    if done is None or done.returncode:
        raise MissingDependency(
            f"{python} has no lmms-eval: run `make eval` and give --python .venv-eval/bin/python, or "
            "pip install 'tops-engine[eval]' in an environment that it may change."
        )
    return dict(zip(PACKAGES, done.stdout.split(), strict=True))


def check_memory(plan: Plan, spec: ModelSpec) -> None:
    """Check that the weights fit into the memory of the GPU; nothing is checked without one.

    Raises
    ------
    InvalidInput
        If they do not; the message names what would fit.
    """
    device = resolve_device(spec.device)
    if device.type != "cuda":
        return
    available = total_memory(device) / 2**30
    parameters = read_protocols().models[plan.model].parameters
    needed = {how: parameters * size * ROOM / 2**30 for how, size in BYTES_A_WEIGHT.items()}
    if needed[spec.quantization] <= available:
        return
    fitting = [how for how, size in needed.items() if how is not None and size <= available]
    advice = f"add --quantization {fitting[0]}" if fitting else _smaller_models(available)
    raise InvalidInput(
        f"{plan.model} needs about {needed[spec.quantization]:.0f} GiB and {device} has {available:.0f}; {advice}."
    )


def _smaller_models(available: float) -> str:
    """Return the advice to choose a model that fits into that many GiB, perhaps quantised."""
    fitting = [
        f"{name} with --quantization {how}" if how is not None else name
        for name, model in read_protocols().models.items()
        for how, size in BYTES_A_WEIGHT.items()
        if model.parameters * size * ROOM / 2**30 <= available
    ]
    return f"choose a smaller model, such as {fitting[0]}"


def run_plan(plan: Plan, output: Path, python: str, progress: Progress = no_progress) -> dict[str, dict[str, Scored]]:
    """Run what is missing, and return the scores of each run by benchmark.

    Parameters
    ----------
    output : folder of the results; the same plan continues it.
    python : the interpreter that has lmms-eval.
    progress : receives the number of runs.

    Raises
    ------
    InvalidInput
        If the folder holds the results of another plan, or cannot be written.
    MissingDependency
        If there is no lmms-eval.
    TopsError
        If lmms-eval stops with an error.
    """
    versions_of(python)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"The folder {output} cannot be made: {error.strerror}.") from error
    journal = Journal(output / "runs.jsonl", _header(plan))
    done = {(record["run"], record["sample"]): record for record in journal.records()}
    tasks = _task_folder(plan, output, python)
    progress(0, len(plan.runs))
    results = {}
    for number, run in enumerate(plan.runs, start=1):
        key = (run.name, plan.sample)
        if key not in done:
            done[key] = _call(plan, run, output, python, tasks)
            for name in judged(plan):
                benchmark = read_protocols().benchmarks[name]
                check_judged(name, benchmark, _samples(benchmark, done[key], output))
            journal.append([done[key]])
        results[run.name] = _scores(plan, done[key], output)
        progress(number, len(plan.runs))
    return results


def judged(plan: Plan) -> list[str]:
    """Return the benchmarks of a plan that another model scores."""
    return [name for name in plan.benchmarks if read_protocols().benchmarks[name].judge]


def command_of(plan: Plan, run: PlannedRun, output: Path, python: str, tasks: Path) -> list[str]:
    """Return the call of lmms-eval for a run."""
    folder = folder_of(run, output)
    arguments = run.arguments | {"journal": (folder / "answers.jsonl").as_posix()}
    text = ",".join(f"{name}={_argument(value)}" for name, value in arguments.items())
    known = read_protocols().benchmarks
    names = ",".join(dict.fromkeys(known[name].task for name in plan.benchmarks))
    command = [python, "-m", "lmms_eval", "eval", "--model", "tops", "--model_args", text, "--tasks", names]
    command += ["--batch_size", str(plan.batch_size), "--include_path", str(tasks), "--log_samples"]
    command += ["--output_path", str(folder / "lmms-eval"), "--seed", f"{plan.seed},1234,1234,1234"]
    return command + (["--limit", str(plan.sample)] if plan.sample is not None else [])


def _header(plan: Plan) -> dict[str, Any]:
    about = plan.model_dump(include={"version", "paper", "model", "checkpoint", "seed"})
    return {"format": HEADER, **about, "benchmarks": sorted(plan.benchmarks)}


def _task_folder(plan: Plan, output: Path, python: str) -> Path:
    """Write the tasks that lmms-eval does not bring along."""
    tasks = output / "tasks"
    known = read_protocols().benchmarks
    module = "lmms_eval_tops.task_files"
    command = [python, "-m", module, str(tasks)]
    if any(known[name].prepare == "mini_scenes" for name in plan.benchmarks):
        command += ["--scenes", str(_num_scenes(plan, known))]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise TopsError(f"The tasks cannot be written to {tasks}: {done.stderr.strip().splitlines()[-1]}")
    return tasks


def _num_scenes(plan: Plan, known: Mapping[str, Benchmark]) -> int:
    """Return as many scenes as the questions of the plan need; a scene has at least four."""
    questions = max(plan.benchmarks[name] for name in plan.benchmarks if known[name].prepare == "mini_scenes")
    return min(500, max(4, questions // 4))


def _call(plan: Plan, run: PlannedRun, output: Path, python: str, tasks: Path) -> dict[str, Any]:
    """Call lmms-eval, whose output goes to the terminal; return the record of a finished run."""
    folder = folder_of(run, output)
    folder.mkdir(parents=True, exist_ok=True)
    code = subprocess.run(command_of(plan, run, output, python, tasks), check=False).returncode
    written = sorted((folder / "lmms-eval").rglob("*_results.json"))
    if code or not written:
        raise TopsError(
            f"lmms-eval stopped with status {code} while it ran {run.name!r}; its last lines above say why. The same "
            "command continues the run."
        )
    latest = written[-1]
    return {"run": run.name, "sample": plan.sample, "results": latest.relative_to(output).as_posix()}


def hours_of_all(plan: Plan, output: Path) -> float | None:
    """Return the hours that all questions take at the speed of this sample, None if it cannot be told.

    The seconds of an answer count, without loading models and data.
    """
    known = read_protocols().benchmarks
    hours = 0.0
    for run in plan.runs:
        records = _journal_lines(folder_of(run, output))
        if not records:
            return None
        seconds = sum(record["seconds"] for record in records) / len(records)
        hours += seconds * sum(known[name].questions for name in plan.benchmarks) / 3600
    return hours


def _scores(plan: Plan, record: Mapping[str, Any], output: Path) -> dict[str, Scored]:
    path = output / record["results"]
    try:
        reported = json.loads(path.read_text(encoding="utf-8"))["results"]
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"The results {path} cannot be read; delete {output} and run again. ({error})") from error
    scores = {}
    for name in plan.benchmarks:
        benchmark = read_protocols().benchmarks[name]
        figure = reported.get(benchmark.task, {}).get(f"{benchmark.metric},none")
        samples = _samples(benchmark, record, output)
        scores[name] = score(benchmark, samples, figure if isinstance(figure, int | float) else None)
    return scores


def _samples(benchmark: Benchmark, record: Mapping[str, Any], output: Path) -> list[dict[str, Any]]:
    path = output / record["results"]
    stamp = path.name.removesuffix("_results.json")
    return read_samples(path.with_name(f"{stamp}_samples_{benchmark.task}.jsonl"))


def origin(plan: Plan, versions: Mapping[str, str], command: str) -> str:
    """Return how a table was made, in a sentence: command, versions, precision and seed."""
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"Made by `{command}` with tops-engine {plan.version}, {packages}; dtype {plan.dtype}, seed {plan.seed}, "
        f"batches of {plan.batch_size}."
    )


def layer_averages(plan: Plan, output: Path) -> dict[str, float]:
    """Return the true layer-average of each run, mean over the answers of its journal."""
    averages = {}
    for run in plan.runs:
        tokens = [record["pruning"]["layer_average"] for record in _journal_lines(folder_of(run, output))]
        averages[run.name] = sum(tokens) / max(len(tokens), 1)
    return averages


def _journal_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the answers of a run."""
    lines: Sequence[str] = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    return [json.loads(line) for line in lines if line.endswith("}")]


def _argument(value: Any) -> str:
    """Return a model argument as lmms-eval reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"'{text}'" if "," in text and "'" not in text else f'"{text}"' if "," in text else text
