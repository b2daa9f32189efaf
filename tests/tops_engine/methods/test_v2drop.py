"""Compare V2Drop with the change of transformers' own hidden states."""

from pathlib import Path

import torch

from tests.conftest import Picture
from tests.support.checkpoints import save_llava
from tests.support.slow_reference import greedy_tokens, model_inputs_embeds
from tops_engine.budget import layer_average
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.settings import Generation, ModelSpec, Pruning


def test_each_step_keeps_what_the_layer_before_changed_most(tmp_path: Path, picture: Picture) -> None:
    engine = Engine.load(ModelSpec(model=str(save_llava(tmp_path, "mistral")), device="cpu", attention="eager"))
    family, messages = engine.family, [user_message("What is shown?", picture(80, 60))]
    answer = engine.chat(messages, Pruning(method="v2drop", keep=0.5, layers=[2, 3]), Generation(max_tokens=3))
    (_, (first,)), (_, (second,)) = answer.token_map.stages[-2:]
    prompt = family.prepare(read_conversation(messages))
    positions = prompt.spans[0].positions
    model = family.model.model.language_model
    with torch.inference_mode():
        embeds = model_inputs_embeds(family, prompt)
        states = model(inputs_embeds=embeds, output_hidden_states=True).hidden_states
        change = (states[2] - states[1])[0, positions].norm(dim=-1)
        assert first.tolist() == change.topk(len(first)).indices.sort().values.tolist()
        # Layer 2 runs without the dropped tokens.
        dropped = set(positions.tolist()) - set(positions[first].tolist())
        kept = torch.tensor([place for place in range(embeds.shape[1]) if place not in dropped])
        before = states[2][:, kept]
        rope = model.rotary_emb(before, kept[None])
        mask = torch.full((len(kept), len(kept)), float("-inf")).triu(1)[None, None]
        after = model.layers[2](before, attention_mask=mask, position_embeddings=rope)
    change = (after - before)[0, torch.isin(kept, positions)].norm(dim=-1)
    assert second.tolist() == first[change.topk(len(second)).indices.sort().values].tolist()
    assert answer.token_ids == greedy_tokens(family, messages, answer, "original", len(answer.token_ids))


def test_what_the_source_ran_is_a_preset() -> None:
    pruning = Pruning(method="v2drop", schedule="v2drop/llava-1.5")
    assert pruning.stages(576, 32) == ((3, 288), (17, 144), (22, 1))
    assert layer_average(pruning.stages(576, 32), 576, 32) == 202.8125
    assert [stage.layer for stage in Pruning(method="v2drop", keep=192).stages(576, 32)] == [0, 3, 17, 22]
