"""Test the plan of a reproduction: what runs, with which options, and what differs from lmms-eval's defaults."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Tops
from tops_engine.errors import InvalidInput, MissingDependency
from tops_engine.methods import METHODS
from tops_engine.reproduction import run
from tops_engine.reproduction.plan import Plan, budgets_of, make_plan
from tops_engine.reproduction.protocols import VICUNA_SYSTEM_PROMPT, find_protocol, read_protocols
from tops_engine.reproduction.run import command_of, run_plan
from tops_engine.settings import ModelSpec


def plan_of(model: str, methods: str = "tops", **options: Any) -> Plan:
    protocol = find_protocol(model, options.pop("table", None), options.pop("paper", None))
    spec = options.pop("spec", ModelSpec(model=read_protocols().models[model].checkpoint))
    budgets = budgets_of(protocol, options.pop("keep", None))
    return make_plan(protocol, methods, budgets, spec, environment=options.pop("environment", {}), **options)


def test_the_command_prints_the_plan_as_json(tops: Tops) -> None:
    result = tops(
        "reproduce",
        "llava-1.5-7b",
        "--table",
        "1",
        "--keep",
        "0.222,0.111,0.056",
        "--methods",
        "tops,scope",
        "--dry-run",
    )
    assert result.code == 0
    plan = Plan.model_validate(json.loads(result.out))
    assert [run.name for run in plan.runs] == [
        "unpruned", "tops 128", "scope 128", "tops 64", "scope 64", "tops 32", "scope 32",
    ]  # fmt: skip
    assert plan.benchmarks["textvqa"] == 5000
    assert any("llava-1.5-7b-hf (about 14 GB" in one for one in plan.downloads)
    assert plan.hours["H100"] > 0


def test_a_budget_below_the_smallest_picture_has_no_run_of_it() -> None:
    plan = plan_of("internvl3-8b", "tops,resize", benchmarks=["pope"])
    assert [run.name for run in plan.runs] == ["unpruned", "tops 256", "resize 256", "tops 128"]
    assert any("from 256 visual tokens on" in note for note in plan.notes)


@pytest.mark.parametrize(("model", "label"), [("mini", "resize:enlarge=true"), ("qwen2.5-vl-7b", "resize")])
def test_a_smaller_picture_runs_without_being_named(tops: Tops, model: str, label: str) -> None:
    result = tops("reproduce", model, "--benchmarks", "mini-scenes", "--keep", "32", "--dry-run")
    plan = Plan.model_validate(json.loads(result.out))
    assert [run.name for run in plan.runs] == ["unpruned", "tops 32", f"{label} 32"]
    assert plan.runs[2].arguments["method"] == "resize"
    saves = plan.runs[2].hours["H100"] < plan.runs[0].hours["H100"]
    assert saves == (model != "mini")
    assert any("saves nothing" in note for note in plan.notes) == (model == "mini")


def test_tops_runs_with_the_schedule_of_the_paper_and_others_with_a_layer_average() -> None:
    plan = plan_of("llava-1.5-7b", "tops,scope,tops:stages=first", keep="0.111")
    arguments = {run.name: run.arguments for run in plan.runs}
    assert arguments["unpruned"]["keep"] == 1.0
    assert arguments["tops 64"]["schedule"] == "llava-1.5-7b/64"
    assert arguments["tops 64"]["schedule"] in METHODS["tops"].presets
    assert (arguments["scope 64"]["method"], arguments["scope 64"]["keep"]) == ("scope", 64)
    assert (arguments["tops:stages=first 64"]["stages"], arguments["tops:stages=first 64"]["keep"]) == ("first", 64)


def test_llava_next_has_2880_tokens_because_padding_stays() -> None:
    plan = plan_of("llava-next-7b", keep="0.222")
    assert plan.runs[1].name == "tops 640"
    assert all(run.arguments["unpad"] is False for run in plan.runs)
    assert any("2,880" in note for note in plan.notes)
    assert all("unpad" not in run.arguments for run in plan_of("llava-1.5-7b").runs)


def test_llava_1_5_gets_its_system_prompt_and_square_pictures() -> None:
    for planned in plan_of("llava-1.5-7b").runs:
        assert planned.arguments["system_prompt"] == VICUNA_SYSTEM_PROMPT
        assert planned.arguments["pad_to_square"] is True


def test_textvqa_is_the_task_with_ocr_tokens() -> None:
    assert read_protocols().benchmarks["textvqa"].task == "tops_textvqa_ocr"
    assert any("OCR tokens" in note for note in plan_of("llava-1.5-7b").notes)


def test_mm_vet_needs_a_judge() -> None:
    without = plan_of("llava-1.5-7b")
    assert "mm-vet" not in without.benchmarks
    assert "OPENAI_API_KEY" in without.skipped["mm-vet"]
    with_judge = plan_of("llava-1.5-7b", environment={"OPENAI_API_KEY": "any"})
    assert "mm-vet" in with_judge.benchmarks
    assert with_judge.skipped == {}
    with pytest.raises(InvalidInput, match="scored by another model"):
        plan_of("llava-1.5-7b", benchmarks=["mm-vet"])


def test_a_number_of_a_table_that_is_assumed_says_so() -> None:
    assert any("Table 1: the number is assumed" in note for note in plan_of("llava-1.5-7b").notes)
    assert not any("assumed from the order" in note for note in plan_of("llava-1.5-7b", paper="2502.11501").notes)


def test_benchmarks_that_the_source_does_not_name_have_to_be_named() -> None:
    with pytest.raises(InvalidInput, match="--benchmarks"):
        plan_of("qwen2.5-vl-7b", table="3")
    plan = plan_of("qwen2.5-vl-7b", table="3", benchmarks=["gqa", "pope"], sample=100)
    assert plan.benchmarks == {"gqa": 100, "pope": 100}
    with pytest.raises(InvalidInput, match="no benchmark 'gqaa'"):
        plan_of("qwen2.5-vl-7b", benchmarks=["gqaa"])


@pytest.mark.parametrize(
    ("model", "keep", "budgets"),
    [
        ("llava-1.5-7b", "0.222,0.111,0.056", [128, 64, 32]),
        ("llava-1.5-7b", "64, 0.5", [64, 288]),
        ("llava-next-7b", "0.222,0.111,0.056", [640, 320, 160]),
        ("mini", None, [32, 16, 8]),
    ],
)
def test_budgets_are_those_of_the_paper_or_layer_averages(model: str, keep: str | None, budgets: list[int]) -> None:
    assert budgets_of(find_protocol(model), keep) == budgets


def test_the_call_of_lmms_eval_has_every_option(tmp_path: Path) -> None:
    spec = ModelSpec(model="my/folder", quantization="4bit")
    plan = plan_of("llava-1.5-7b", spec=spec, keep="64", benchmarks=["gqa", "pope"], sample=100, batch_size=4)
    command = command_of(plan, plan.runs[1], tmp_path / "out", "python3", tmp_path / "tasks")
    assert "--log_samples" in command
    pairs = [word for word in command[4:] if word != "--log_samples"]
    options = dict(zip(pairs[::2], pairs[1::2], strict=True))
    assert command[:4] == ["python3", "-m", "lmms_eval", "eval"]
    assert options["--tasks"] == "gqa,pope"
    assert options["--limit"] == "100"
    assert options["--batch_size"] == "4"
    arguments = options["--model_args"]
    for part in ("model=my/folder", "quantization=4bit", "schedule=llava-1.5-7b/64", "pad_to_square=true"):
        assert part in arguments.split(",")
    assert f'system_prompt="{VICUNA_SYSTEM_PROMPT}"' in arguments
    assert "answers.jsonl" in arguments


@pytest.mark.parametrize(
    ("gibibytes", "quantization", "advice"),
    [
        (24, None, None),
        (12, None, "--quantization 8bit"),
        (6, None, "--quantization 4bit"),
        (6, "4bit", None),
        (2, None, "smaller model, such as mini"),
    ],
)
def test_a_gpu_that_is_too_small_is_told_what_would_fit(
    gibibytes: int, quantization: Any, advice: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "resolve_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(run, "total_memory", lambda device: gibibytes * 2**30)
    spec = ModelSpec(model="my/folder", quantization=quantization)
    plan = plan_of("llava-1.5-7b", spec=spec)
    if advice is None:
        run.check_memory(plan, spec)
        return
    with pytest.raises(InvalidInput, match=advice):
        run.check_memory(plan, spec)


def test_a_smaller_model_is_named_with_the_quantisation_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "resolve_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(run, "total_memory", lambda device: 8 * 2**30)
    spec = ModelSpec(model="my/folder")
    with pytest.raises(InvalidInput, match=r"such as llava-1\.5-7b with --quantization 4bit"):
        run.check_memory(plan_of("llava-1.5-13b", spec=spec), spec)


def test_without_lmms_eval_a_sentence_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match="make eval"):
        run_plan(plan_of("mini"), tmp_path, str(tmp_path / "no-python"))
