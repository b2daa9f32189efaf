"""Compare FastV with transformers' own attention maps."""

from pathlib import Path

import pytest
import torch

from tests.conftest import Picture
from tests.support.checkpoints import save_llava
from tests.support.slow_reference import model_inputs_embeds
from tops_engine.budget import layer_average
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, InvalidInput
from tops_engine.settings import Generation, ModelSpec, Pruning


@pytest.mark.parametrize("layer", [1, 2, 5])
def test_keeps_what_the_last_row_of_the_layer_before_attends_to(tmp_path: Path, picture: Picture, layer: int) -> None:
    engine = Engine.load(ModelSpec(model=str(save_llava(tmp_path, "mistral")), device="cpu", attention="eager"))
    family = engine.family
    messages = [user_message("What is shown?", picture(80, 60), picture(60, 60, 1))]
    prompt = family.prepare(read_conversation(messages))
    with torch.inference_mode():
        embeds = model_inputs_embeds(family, prompt)
        output = family.model.model.language_model(inputs_embeds=embeds, output_attentions=True)
    row = output.attentions[layer - 1][0, :, -1].mean(dim=0)
    answer = engine.chat(messages, Pruning(method="fastv", keep=0.75, layer=layer), Generation(max_tokens=1))
    kept = answer.token_map.stages[-1][1]
    for span, indices in zip(prompt.spans, kept, strict=True):
        expected = row[span.positions].topk(len(indices)).indices.sort().values
        assert indices.tolist() == expected.tolist()
    assert answer.pruning["positions"] == "original"


def test_the_published_budgets() -> None:
    """Use layer-averages of 192, 128 and 64 of 576 in 32 layers, pruned at layer 2 (methods compared at equal cost)."""
    for average, count in [(192, 166), (128, 98), (64, 30)]:
        stages = Pruning(method="fastv", keep=average).stages(576, 32)
        assert stages[1] == (2, count)
        assert layer_average(stages, 576, 32) == pytest.approx(average, abs=0.5)


def test_a_budget_below_what_the_first_layers_cost_says_what_can_be_met() -> None:
    with pytest.raises(
        BudgetError,
        match=r"layer 2 of 32, since the layers before see all 576 visual tokens; choose earlier ones with the option "
        r"'layer' or "
        r"use at least 0\.0642\.$",
    ):
        Pruning(method="fastv", keep=32).stages(576, 32)
    assert Pruning(method="fastv", keep=0.0642).stages(576, 32)[1].num_tokens >= 1
    assert Pruning(method="fastv", keep=32, layer=1).stages(576, 32) == ((0, 576), (1, 14))
    with pytest.raises(BudgetError, match="layer 40 is not possible in a model of 32 layers"):
        Pruning(method="fastv", layer=40).stages(576, 32)


@pytest.mark.parametrize(("num_tokens", "num_kept"), [(576, 144), (147, 37), (145, 36), (1, 1)])
def test_a_preset_rounds_the_count_of_another_size_as_the_official_code_does(num_tokens: int, num_kept: int) -> None:
    assert Pruning(method="fastv", schedule="fastv/k3-r75").stages(num_tokens, 32) == ((3, num_kept),)


def test_what_the_source_ran_is_a_preset() -> None:
    pruning = Pruning(method="fastv", schedule="fastv/k3-r75")
    assert pruning.resolved()["layer"] == 3
    # 75 % dropped, whatever the size of the picture.
    assert pruning.stages(576, 32) == ((3, 144),)
    assert pruning.stages(2880, 32) == ((3, 720),)
    with pytest.raises(InvalidInput, match=r"no preset 'fastv/k3-r75'; choose one of llava-1\.5-7b/128"):
        Pruning(method="tops", schedule="fastv/k3-r75")
