"""The floor counts what a token reads, and the benchmark puts compiled answers beside the others."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import latency
from benchmarks.floor import bandwidth, bytes_a_token
from tests.conftest import Picture
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.settings import Generation, Pruning


def test_a_token_reads_the_weights_but_the_token_table_and_the_cache(llava_engine: Engine, picture: Picture) -> None:
    model = llava_engine.family.model
    answer = llava_engine.chat([user_message("Why?", picture())], Pruning(keep=1.0), Generation(max_tokens=9))
    text = model.model.language_model
    weights = sum(weight.numel() for weight in text.parameters()) - text.embed_tokens.weight.numel()
    weights += model.lm_head.weight.numel()
    config = text.config
    a_token = 2 * config.num_hidden_layers * config.num_key_value_heads * text.layers[0].self_attn.head_dim
    half_way = answer.usage.prompt_tokens + (answer.usage.completion_tokens - 1) - answer.usage.completion_tokens // 2
    assert bytes_a_token(llava_engine.family.decoder, answer) == 4 * (weights + half_way * a_token)


def test_memory_is_read_at_a_rate_that_can_be() -> None:
    assert 1e8 < bandwidth(torch.device("cpu"), torch.float32) < 1e13


@pytest.mark.parametrize(
    "compiled",
    [
        [],
        pytest.param(
            ["--compile"],
            marks=[
                pytest.mark.full,  # generation/test_compiled.py compiles the same steps
                pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (apt install g++)"),
            ],
        ),
    ],
)
def test_the_sides_take_turns(compiled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "latency.json"
    options = "--text 30 --tokens 3 --rounds 1 --json".split()
    monkeypatch.setattr(sys, "argv", ["latency", *options, str(out), *compiled])
    latency.main()
    rows = json.loads(out.read_text())["results"]
    sides = ["transformers generate", "unpruned", "unpruned, compiled"]
    assert [row["side"] for row in rows] == sides[: len(rows)]
    assert len(rows) == (3 if compiled else 2)
    assert all(row["next_token_floor_s"] > 0 for row in rows)
