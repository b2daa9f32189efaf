"""Test PyramidDrop: its budget, its schedule, and its selection against transformers' own attention maps."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.conftest import Picture
from tests.support.checkpoints import save_llava
from tests.support.slow_reference import greedy_tokens, model_inputs_embeds
from tops_engine.budget import layer_average
from tops_engine.conversation.messages import Message, read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, InvalidInput
from tops_engine.methods import Positions
from tops_engine.settings import Generation, ModelSpec, Pruning


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = save_llava(tmp_path_factory.mktemp("pyramiddrop"), "llama")
    return Engine.load(ModelSpec(model=str(folder), device="cpu", attention="eager"))


def test_each_step_keeps_what_the_last_row_of_the_next_layer_attends_to(engine: Engine, picture: Picture) -> None:
    family = engine.family
    messages = [user_message("What is shown?", picture(80, 60))]
    answer = engine.chat(messages, Pruning(method="pyramiddrop", keep=0.5, layers=[2, 5]), Generation(max_tokens=1))
    prompt = family.prepare(read_conversation(messages))
    hidden = model_inputs_embeds(family, prompt)
    image = prompt.spans[0].positions
    model = family.model.model.language_model
    remaining = torch.arange(hidden.shape[1])
    expected: list[list[int]] = []
    with torch.inference_mode():
        for index, layer in enumerate(model.layers):
            causal = torch.full((len(remaining), len(remaining)), float("-inf")).triu(1)[None, None]
            rope = model.rotary_emb(hidden, torch.arange(len(remaining))[None])
            if index in (2, 5):
                # The layer's own attention before anything is dropped, in the numbering that holds until then.
                normed = layer.input_layernorm(hidden)
                _, weights = layer.self_attn(normed, position_embeddings=rope, attention_mask=causal)
                is_image = torch.isin(remaining, image)
                row = weights[0, :, -1].mean(dim=0).masked_fill(~is_image, -1.0)
                count = len(answer.token_map.stages[len(expected) + 1][1][0])
                best = row.topk(count).indices.sort().values
                expected.append((remaining[best] - image[0]).tolist())
                stays = (~is_image).index_fill(0, best, True)
                hidden, remaining = hidden[:, stays], remaining[stays]
                causal = torch.full((len(remaining), len(remaining)), float("-inf")).triu(1)[None, None]
                rope = model.rotary_emb(hidden, torch.arange(len(remaining))[None])
            hidden = layer(hidden, attention_mask=causal, position_embeddings=rope)
    assert [kept[0].tolist() for _, kept in answer.token_map.stages[1:]] == expected
    assert [layer for layer, _ in answer.token_map.stages] == [0, 2, 5]
    assert answer.pruning["positions"] == "contiguous"


@pytest.mark.parametrize("positions", ["contiguous", "original"])
@pytest.mark.parametrize("method", ["pyramiddrop", "fitprune", "dart", "fastv_window"])
def test_what_is_dropped_is_gone_and_nothing_else(
    engine: Engine, picture: Picture, method: str, positions: Positions
) -> None:
    """Use several pictures in a prompt, prompts of different lengths in a batch, and decoding on the pruned cache."""
    conversations: list[list[Message]] = [
        [user_message("Compare the two.", picture(60, 60), picture(60, 90, 3))],
        [user_message("What?", picture(110, 70, 1))],
    ]
    pruning = Pruning(method=method, keep=0.5, positions=positions)
    answers = engine.batch(conversations, pruning, Generation(max_tokens=8))
    for messages, answer in zip(conversations, answers, strict=True):
        alone = engine.chat(messages, pruning, Generation(max_tokens=8))
        expected = greedy_tokens(engine.family, messages, answer, positions, len(answer.token_ids))
        assert answer.token_ids == alone.token_ids == expected


def test_the_papers_own_halves_are_a_preset_that_reports_its_average() -> None:
    pruning = Pruning(method="pyramiddrop", schedule="pyramiddrop/paper")
    assert pruning.stages(576, 32) == ((8, 288), (16, 144), (24, 72))
    assert layer_average(pruning.stages(576, 32), 576, 32) == 270
    assert pruning.stages(2880, 32) == ((8, 1440), (16, 720), (24, 360))
    assert pruning.resolved()["layers"] == [8, 16, 24]


@pytest.mark.parametrize(("average", "first"), [(128, 210), (64, 64)])
def test_budgets_of_the_tables(average: int, first: int) -> None:
    """Expect a layer-average of (2 * 576 + 14 a) / 32 for a, a/2 and a/4 tokens from layers 2, 8 and 16 of 32."""
    stages = Pruning(method="pyramiddrop", keep=average).stages(576, 32)
    assert [stage.layer for stage in stages] == [0, 2, 8, 16]
    assert stages[1].num_tokens == pytest.approx(first, abs=1)
    assert layer_average(stages, 576, 32) == pytest.approx(average, abs=0.5)


def test_steps_keep_their_depth_in_other_models() -> None:
    assert [stage.layer for stage in Pruning(method="pyramiddrop", keep=0.5).stages(576, 40)] == [0, 2, 10, 20]
    assert [stage.layer for stage in Pruning(method="pyramiddrop", keep=0.5).stages(144, 8)] == [0, 1, 2, 4]
    assert [stage.layer for stage in Pruning(method="pyramiddrop", keep=0.8).stages(144, 2)] == [0, 1]


@example("pyramiddrop", 0.265625, 30, 4)
@given(st.sampled_from(["pyramiddrop", "sparsevlm"]), st.floats(0.13, 1.0), st.integers(30, 3000), st.integers(4, 90))
def test_a_budget_is_met_or_refused_with_the_least(method: str, keep: float, size: int, depth: int) -> None:
    try:
        stages = Pruning(method=method, keep=keep).stages(size, depth)
    except BudgetError as error:
        least = float(str(error).rpartition(" ")[2].rstrip("."))
        stages = Pruning(method=method, keep=least).stages(size, depth)
        assert least > keep
        keep = least
    longest = max(end - stage.layer for stage, end in zip(stages, [*(s.layer for s in stages[1:]), depth], strict=True))
    assert abs(layer_average(stages, size, depth) - keep * size) <= longest / (2 * depth) + 1e-6


@pytest.mark.parametrize("layers", ["2,5", "2+5", [2, 5], (2, 5)])
def test_layers_are_numbers_or_their_text(layers: object) -> None:
    pruning = Pruning(method="pyramiddrop", keep=0.5, layers=layers)
    assert [stage.layer for stage in pruning.stages(100, 8)] == [0, 2, 5]
    assert pruning.label == "pyramiddrop:layers=2+5"
    assert Pruning.from_label(pruning.label, 0.5).method_instance == pruning.method_instance
    assert Pruning(**pruning.model_dump(mode="json")).method_instance == pruning.method_instance


@pytest.mark.parametrize("layers", ["5,2", "0,2", "2,2", [], "two"])
def test_unsound_layers_are_refused(layers: object) -> None:
    with pytest.raises(InvalidInput, match="layers"):
        Pruning(method="pyramiddrop", layers=layers)


def test_layers_the_model_lacks_are_a_budget_error() -> None:
    with pytest.raises(BudgetError, match=r"at layer 2, 9 is not possible in a model of 8 layers; .* from 1 to 7\."):
        Pruning(method="pyramiddrop", layers=[2, 9]).stages(100, 8)
