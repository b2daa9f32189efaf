"""Compare TransPrune with what hooks on transformers' own model see, written out step by step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.conftest import Picture
from tests.support.checkpoints import save_llava
from tests.support.slow_reference import greedy_tokens, model_inputs_embeds
from tops_engine.budget import layer_average
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.settings import Generation, ModelSpec, Pruning


@contextmanager
def changes_of(block: nn.Module) -> Iterator[Callable[[], Tensor]]:
    """Watch a layer of the model; the function returns how much its last run changed each token."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Any], output: Any) -> None:
            before = inputs[0] if inputs else keywords["hidden_states"]
            seen[name] = before[0], (output[0] if isinstance(output, tuple) else output)[0]

        return hook

    handles = [
        getattr(block, name).register_forward_hook(watch(name), with_kwargs=True) for name in ("self_attn", "mlp")
    ]

    def changes() -> Tensor:
        total = torch.zeros(len(seen["mlp"][0]))
        for before, after in seen.values():
            for token in range(len(total)):
                cosine = before[token] @ after[token] / before[token].norm() / after[token].norm()
                weights = (1 - torch.cosine_similarity(before, after, dim=-1)).exp()
                total[token] += after[token].norm() / before[token].norm() * (1 - cosine).exp() / weights.sum()
        return total

    yield changes
    for handle in handles:
        handle.remove()


def test_changes_are_accumulated_and_added_to_the_attention_of_the_text(tmp_path: Path, picture: Picture) -> None:
    engine = Engine.load(ModelSpec(model=str(save_llava(tmp_path, "mistral")), device="cpu", attention="eager"))
    family, messages = engine.family, [user_message("What is shown?", picture(80, 60))]
    answer = engine.chat(messages, Pruning(method="transprune", keep=0.5, layers=[2, 3]), Generation(max_tokens=3))
    (_, (first,)), (_, (second,)) = answer.token_map.stages[-2:]
    prompt = family.prepare(read_conversation(messages))
    positions = prompt.spans[0].positions
    model = family.model.model.language_model

    def chosen(changes: Tensor, attention: Tensor, slots: Tensor, count: int) -> list[int]:
        rows = attention[0].mean(dim=0)[int(slots[-1]) + 1 :, slots].mean(dim=0)
        score = changes[slots] / changes[slots].sum() + rows / rows.sum()
        return score.topk(count).indices.sort().values.tolist()

    with torch.inference_mode():
        embeds = model_inputs_embeds(family, prompt)
        with changes_of(model.layers[1]) as changes:
            run = model(inputs_embeds=embeds, output_hidden_states=True, output_attentions=True)
        total = changes()
        assert first.tolist() == chosen(total, run.attentions[2], positions, len(first))
        # Layer 2 runs without the dropped tokens, which are numbered anew.
        dropped = set(positions.tolist()) - set(positions[first].tolist())
        kept = torch.tensor([place for place in range(embeds.shape[1]) if place not in dropped])
        before = run.hidden_states[2][:, kept]
        rope = model.rotary_emb(before, torch.arange(len(kept))[None])
        mask = torch.full((len(kept), len(kept)), float("-inf")).triu(1)[None, None]
        with changes_of(model.layers[2]) as changes:
            after = model.layers[2](before, attention_mask=mask, position_embeddings=rope)
        total = total[kept] + changes()
        block = model.layers[3]
        _, attention = block.self_attn(block.input_layernorm(after), position_embeddings=rope, attention_mask=mask)
    slots = torch.isin(kept, positions).nonzero().flatten()
    assert second.tolist() == first[chosen(total, attention, slots, len(second))].tolist()
    assert answer.token_ids == greedy_tokens(family, messages, answer, "contiguous", len(answer.token_ids))


def test_a_batch_of_prompts_of_different_lengths_is_watched_sequence_by_sequence(
    llava_engine: Engine, picture: Picture
) -> None:
    conversations = [[user_message(text, picture(80, 60))] for text in ("What?", "What is shown in this picture?")]
    pruning, generation = Pruning(method="transprune", keep=0.6), Generation(max_tokens=1)
    alone = [llava_engine.chat(messages, pruning, generation) for messages in conversations]
    together = llava_engine.batch(conversations, pruning, generation)
    kept = [[[part.tolist() for part in parts] for _, parts in answer.token_map.stages] for answer in together]
    assert kept == [[[part.tolist() for part in parts] for _, parts in answer.token_map.stages] for answer in alone]


def test_what_the_source_ran_is_a_preset() -> None:
    pruning = Pruning(method="transprune", schedule="transprune/llava")
    assert pruning.stages(576, 32) == ((7, 504), (9, 360), (12, 72))
    assert layer_average(pruning.stages(576, 32), 576, 32) == 236.25
    # The same proportions for the budget that this averages.
    assert Pruning(method="transprune", keep=236.25 / 576).stages(576, 32)[1:] == ((7, 504), (9, 360), (12, 72))
