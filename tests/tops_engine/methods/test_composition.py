"""Test compositions of two methods, and merging of dropped tokens, against plain computations."""

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.conftest import Picture
from tests.support.checkpoints import save_llava
from tests.support.slow_reference import greedy_tokens, model_inputs_embeds
from tests.support.visual_tokens import cosine
from tops_engine.budget import Keep, layer_average, target_tokens
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, InvalidInput
from tops_engine.methods import METHODS
from tops_engine.settings import Generation, ModelSpec, Pruning

ONE_TOKEN = Generation(max_tokens=1)


def test_the_first_prunes_before_the_language_model_and_the_second_inside(tmp_path: Path, picture: Picture) -> None:
    """Keep what DivPrune keeps, then what the last token attends to in transformers' model without the other tokens."""
    engine = Engine.load(ModelSpec(model=str(save_llava(tmp_path, "mistral")), device="cpu", attention="eager"))
    family, messages = engine.family, [user_message("What is shown?", picture(80, 60))]
    generation = Generation(max_tokens=4)
    answer = engine.chat(messages, Pruning(method="divprune+fastv", keep=0.4), generation)
    (_, (first,)), (layer, (second,)) = answer.token_map.stages
    alone = engine.chat(messages, Pruning(method="divprune", schedule=f"0:{len(first)}"), ONE_TOKEN)
    assert first.tolist() == alone.token_map.stages[0][1][0].tolist()
    prompt = family.prepare(read_conversation(messages))
    positions = prompt.spans[0].positions
    dropped = positions[[token for token in range(len(positions)) if token not in first]]
    kept = torch.tensor([place for place in range(len(prompt.input_ids)) if place not in dropped])
    with torch.inference_mode():
        embeds = model_inputs_embeds(family, prompt)[:, kept]
        model = family.model.model.language_model
        output = model(inputs_embeds=embeds, position_ids=kept[None], output_attentions=True)
    row = output.attentions[layer - 1][0, :, -1].mean(dim=0)[torch.isin(kept, positions)]
    assert second.tolist() == first[row.topk(len(second)).indices.sort().values].tolist()
    assert answer.token_ids == greedy_tokens(family, messages, answer, "original", len(answer.token_ids))


BEFORE = [name for name, method in METHODS.items() if method().prunes_before_the_llm]
BETWEEN = [name for name, method in METHODS.items() if method().prunes_between_layers]


@pytest.mark.parametrize("second", BETWEEN)
@pytest.mark.parametrize("first", BEFORE)
def test_every_composition_meets_the_budget(first: str, second: str) -> None:
    if first == second:
        return
    for num_tokens, num_layers, keep in [(576, 32, 0.111), (2880, 32, 320), (16, 8, 0.5), (37, 28, 0.9), (64, 40, 1.0)]:
        stages = Pruning(method=f"{first}+{second}", keep=keep).stages(num_tokens, num_layers)
        target = keep * num_tokens if isinstance(keep, float) else keep
        assert layer_average(stages, num_tokens, num_layers) == pytest.approx(target, abs=0.5)
        assert stages[0] == (0, min(num_tokens, round(2 * target)))


@settings(max_examples=50)
@given(
    st.sampled_from([*BEFORE, *BETWEEN, *(f"{first}+{second}" for first in BEFORE for second in BETWEEN)]),
    st.integers(1, 3000),
    st.integers(2, 80),
    st.one_of(st.floats(0.01, 1.0), st.integers(2, 3000)),
)
def test_every_budget_of_every_picture_and_model_is_met_to_half_a_token(
    name: str, num_tokens: int, num_layers: int, keep: Keep
) -> None:
    assume(len(set(name.split("+"))) == len(name.split("+")))
    try:
        stages = Pruning(method=name, keep=keep).stages(num_tokens, num_layers)
    except BudgetError:  # other tests look at what it says
        return
    counts = [stage.num_tokens for stage in stages]
    assert counts == sorted(counts, reverse=True)
    assert 1 <= counts[-1] <= counts[0] <= num_tokens
    target = min(target_tokens(keep, num_tokens), num_tokens)
    assert layer_average(stages, num_tokens, num_layers) == pytest.approx(target, abs=0.5)


def test_a_second_method_that_prunes_too_late_for_twice_the_budget_leaves_nothing_to_the_first() -> None:
    stages = Pruning(method="divprune+fastv", layer=24, keep=0.8).stages(100, 32)
    assert stages == ((0, 100), (24, 20))
    with pytest.raises(BudgetError, match=r"keep=0\.5 cannot be met by pruning at layer 24 of 32.* use at least 0\.75"):
        Pruning(method="divprune+fastv", layer=24, keep=0.5).stages(100, 32)


def test_options_of_both_methods_and_labels() -> None:
    pruning = Pruning.from_label("tops + pyramiddrop:alpha=0.25:layers=2+4:merge=true", "0.2")
    assert pruning.label == "tops+pyramiddrop:merge=true:layers=2+4:alpha=0.25"
    assert Pruning.from_label(pruning.label, "0.2") == pruning == Pruning(**pruning.model_dump(mode="json"))
    resolved = pruning.resolved()
    assert (resolved["method"], resolved["alpha"], resolved["layers"]) == ("tops+pyramiddrop", 0.25, [2, 4])
    # A method of both stages prunes at one of them only.
    assert [stage.layer for stage in Pruning(method="divprune+tops").stages(576, 32)] == [0, 2, 12]
    assert Pruning(method="tops+fastv", schedule="0:64,3:16").stages(576, 32) == ((0, 64), (3, 16))


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("fastv+divprune", "'fastv' does not prune before the language model"),
        ("divprune+scope", "'scope' does not prune between layers"),
        ("none+fastv", "'none' does not prune before the language model"),
        ("tops+tops", "names one method twice"),
        ("divprune+fastv+dart", "names 3 methods"),
        ("divprune+", "no method ''"),
        ("magic+fastv", "no method 'magic'"),
        ("tops+fastv:stages=both", "'tops' with these options does not prune only before"),
        ("divprune+tops:stages=first", "'tops' with these options does not prune only between"),
        ("divprune+fastv:alpha=1", "no option 'alpha'.* has these options: layer"),
        ("divprune+fastv:layer=0", "layer='0' is not allowed"),
        ("fastv:merge=true", "merge needs a method that prunes before the language model"),
        ("divprune:merge=perhaps", "merge='perhaps' is not allowed"),
    ],
)
def test_what_cannot_be_composed_or_merged_is_refused(label: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        Pruning.from_label(label, "0.5")


@pytest.mark.parametrize("method", ["divprune", "random", "visionzip", "divprune+fastv"])
def test_merging_averages_each_kept_patch_with_the_dropped_ones_nearest_to_it(
    llava_next_engine: Engine, picture: Picture, method: str
) -> None:
    engine = llava_next_engine
    family, messages = engine.family, [user_message("What?", picture(110, 56))]
    engine.forget()
    plain = engine.chat(messages, Pruning(method=method, keep=0.4), ONE_TOKEN)
    engine.forget()
    inputs: list[torch.Tensor] = []
    hook = family.decoder.text_model.layers[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    try:
        answer = engine.chat(messages, Pruning(method=method, keep=0.4, merge=True), ONE_TOKEN)
        unmerged = engine.chat(messages, Pruning(method=method, keep=0.4), ONE_TOKEN)
    finally:
        hook.remove()
        engine.forget()
    kept = answer.token_map.stages[0][1][0].tolist()
    assert kept == plain.token_map.stages[0][1][0].tolist()
    assert unmerged.token_ids == plain.token_ids
    prompt = family.prepare(read_conversation(messages))
    with torch.inference_mode():
        (features,) = family.project([prompt])
    first = int(prompt.spans[0].positions[0])
    before, after = inputs[1][0, first : first + len(kept)], inputs[0][0, first : first + len(kept)]
    shown = prompt.spans[0].layout.shows_picture
    patches = [token for token in kept if shown[token]]
    groups: dict[int, list[torch.Tensor]] = {token: [before[place]] for place, token in enumerate(kept)}
    for token in range(len(features)):
        if token not in kept and shown[token]:
            groups[max(patches, key=lambda target: cosine(features[token], features[target]))].append(features[token])
    expected = torch.stack([torch.stack(groups[token]).mean(dim=0) for token in kept])
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)
    assert answer.flops.selection > plain.flops.selection


def test_a_merged_batch_answers_as_each_conversation_alone(llava_engine: Engine, picture: Picture) -> None:
    conversations = [[user_message("What?", picture(60, 60))], [user_message("Why is it so?", picture(60, 40, 1))]]
    pruning, generation = Pruning(method="scope+fastv", keep=0.4, merge=True), Generation(max_tokens=4)
    together = llava_engine.batch(conversations, pruning, generation)
    for conversation, answer in zip(conversations, together, strict=True):
        llava_engine.forget()
        assert llava_engine.chat(conversation, pruning, generation).token_ids == answer.token_ids
