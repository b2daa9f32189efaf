"""Test that models and options that cannot be pruned end `vllm serve` with one sentence, before it starts an engine."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import vllm_tops
from vllm_tops import versions
from vllm_tops.checks import Verified, checks_of

from tests.support.checkpoints import save_llava
from tests.support.checkpoints_qwen import save_qwen2_5_vl
from tests.support.checkpoints_video import save_onevision
from tops_engine.errors import InvalidInput
from tops_engine.mini import mini_path


@pytest.fixture
def pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPS_KEEP", "0.5")


def config_of(folder: Path, **options: Any) -> Any:
    """Return the configuration that `vllm serve` makes before it starts other processes."""
    from vllm.engine.arg_utils import EngineArgs

    vllm_tops.register()
    return EngineArgs(model=str(folder), dtype="float32", max_model_len=1024, **options).create_engine_config()


@pytest.mark.vllm
@pytest.mark.usefixtures("pruned")
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size"),
        ({"mm_encoder_tp_mode": "data"}, "--mm-encoder-tp-mode data"),
        ({"video_pruning_rate": 0.5}, "--video-pruning-rate"),
        ({"compilation_config": {"compile_mm_encoder": True}}, "compile_mm_encoder"),
    ],
)
def test_options_of_qwen_that_would_prune_wrongly_are_refused(
    tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    folder = save_qwen2_5_vl(tmp_path / "qwen")
    with pytest.raises(SystemExit, match=f"^TOPS: .*{named}"):
        config_of(folder, **options)


@pytest.mark.vllm
@pytest.mark.usefixtures("pruned")
def test_the_cache_of_encoded_pictures_is_larger_than_a_batch() -> None:
    small = config_of(mini_path(), max_num_batched_tokens=2048).scheduler_config
    assert (small.encoder_cache_size, small.max_num_batched_tokens) == (8192, 2048)
    assert config_of(mini_path(), max_num_batched_tokens=16384).scheduler_config.encoder_cache_size == 16384


@pytest.mark.vllm
@pytest.mark.usefixtures("pruned")
def test_vllms_own_pruning_of_videos_is_refused(tmp_path: Path) -> None:
    # vLLM itself ignores the option for this model, and says nothing.
    folder = save_onevision(tmp_path / "onevision")
    sentence = r"^TOPS: TOPS_KEEP prunes videos too, .* leave out --video-pruning-rate, and set TOPS_METHOD"
    with pytest.raises(SystemExit, match=sentence):
        config_of(folder, video_pruning_rate=0.5)


@pytest.mark.vllm
@pytest.mark.usefixtures("pruned")
def test_adapters_of_the_vision_tower_are_refused() -> None:
    with pytest.raises(SystemExit, match=r"^TOPS: LoRA adapters of the vision tower cannot be applied"):
        config_of(mini_path(), enable_lora=True, enable_tower_connector_lora=True)


@pytest.mark.vllm
@pytest.mark.usefixtures("pruned")
def test_a_tower_with_the_class_token_among_its_tokens_is_refused(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "llava")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vision_feature_select_strategy": "full"}))
    with pytest.raises(SystemExit, match=r"^TOPS: TOPS in vLLM prunes patches of a CLIP or SigLIP tower, but this"):
        config_of(folder)


def configuration(**changes: Any) -> Any:
    """Return what the checks read of vLLM's configuration."""
    values: dict[str, Any] = {
        "lora_config": None,
        "speculative_config": None,
        "use_v2_model_runner": True,
        "compilation_config": SimpleNamespace(compile_mm_encoder=False),
        "scheduler_config": SimpleNamespace(encoder_cache_size=2048),
        "parallel_config": SimpleNamespace(pipeline_parallel_size=1, enable_dbo=False),
        "model_config": SimpleNamespace(
            enforce_eager=True,
            multimodal_config=SimpleNamespace(
                mm_encoder_tp_mode="weights", is_multimodal_pruning_enabled=lambda: False
            ),
        ),
    }
    return SimpleNamespace(**values | changes)


@pytest.mark.vllm
def test_drafts_of_another_model_are_refused() -> None:
    drafts = SimpleNamespace(uses_draft_kv_cache=lambda: True)
    (*_, check) = checks_of("Qwen2VLForConditionalGeneration")
    check(configuration())
    with pytest.raises(InvalidInput, match="speculative decoding by another model"):
        check(configuration(speculative_config=drafts))


def test_vllms_own_entry_verifies_too() -> None:
    seen: list[Any] = []
    own = SimpleNamespace(verify_and_update_config=seen.append, verify_and_update_model_config=seen.append)
    asked = configuration()
    entry = Verified(checks_of("InternVLForConditionalGeneration"), own)
    entry.verify_and_update_model_config(asked.model_config)
    entry.verify_and_update_config(asked)
    assert seen == [asked.model_config, asked]


@pytest.mark.parametrize(
    ("version", "allowed"),
    [
        ("0.32.0", True),
        ("0.32.1+cpu", True),
        ("0.33.0", True),
        ("0.33.1.dev7", True),
        ("0.31.0", False),
        ("0.34.0", False),
    ],
)
@pytest.mark.usefixtures("pruned")
def test_other_versions_end_the_start_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, version: str, allowed: bool
) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: version)
    if allowed:
        versions.refuse_other_versions()
        return
    with pytest.raises(SystemExit, match=rf"^TOPS: vLLM {version} is installed, but TOPS prunes in vLLM"):
        vllm_tops.register()
