"""Compare rectified attention with transformers' own layers under a mask that is written out token by token."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import Picture
from tests.support.checkpoints import save_llava
from tests.support.slow_reference import model_inputs_embeds
from tests.support.visual_tokens import cosine
from tops_engine import selection
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput
from tops_engine.settings import Generation, ModelSpec, Pruning

METHODS = [
    "tops",
    pytest.param("visionzip", marks=pytest.mark.full),
    pytest.param("divprune+fastv:layer=2", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("size", "num_groups"), [(9, 4), (9, 9), (9, 1), (1, 1)])
def test_groups_are_those_of_distinctive_anchors(size: int, num_groups: int) -> None:
    features = torch.randn(size, 5, generator=torch.Generator().manual_seed(size + num_groups))
    tokens = range(size)
    density = [sum(cosine(features[one], features[other]) for other in tokens) for one in tokens]
    scores = []
    for one in tokens:
        lower = [cosine(features[one], features[other]) for other in tokens if density[other] < density[one]]
        scores.append(density[one] * (1 - max(lower, default=0.0)))
    anchors = sorted(sorted(tokens, key=lambda token: -scores[token])[:num_groups])
    members: dict[int, list[int]] = {anchor: [anchor] for anchor in anchors}
    for token in set(tokens) - set(anchors):
        members[max(anchors, key=lambda anchor: cosine(features[token], features[anchor]))].append(token)
    expected = sorted((sorted(group)[(len(group) - 1) // 2], sorted(group)) for group in members.values())
    groups = selection.distinctive_groups(features, num_groups)
    assert groups.places.tolist() == [place for place, _ in expected]
    assert groups.sizes.tolist() == [len(group) for _, group in expected]
    torch.testing.assert_close(groups.features, torch.stack([features[group].mean(dim=0) for _, group in expected]))


def decay(model: Any, distance: int) -> float:
    """Return the mean cosine of the rotary angles of two tokens."""
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    theta = config.rope_parameters["rope_theta"]
    angles = [distance / theta ** (2 * pair / size) for pair in range(size // 2)]
    return sum(map(math.cos, angles)) / len(angles)


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.full)])
def test_the_prompt_attends_to_each_token_by_what_it_stands_for(
    tmp_path: Path, picture: Picture, attention: str
) -> None:
    engine = Engine.load(ModelSpec(model=str(save_llava(tmp_path)), device="cpu", attention=attention))
    family, messages = engine.family, [user_message("What is shown?", picture(80, 60))]
    model, seen = family.model.model.language_model, []
    handle = model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    pruning = Pruning(method="divprune", keep=7, rectify="restore")
    answer = engine.chat(messages, pruning, Generation(max_tokens=1))
    handle.remove()
    prompt = family.prepare(read_conversation(messages))
    ((tokens,),) = family.encode([prompt])
    chosen = selection.max_min_select(tokens.features, 3)
    dropped = selection.others(chosen, 16)
    groups = selection.distinctive_groups(tokens.features[dropped], 4)
    features = tokens.features.clone()
    features[dropped[groups.places]] = groups.features
    sizes = torch.ones(16)
    sizes[dropped[groups.places]] = groups.sizes
    kept = torch.cat([chosen, dropped[groups.places]]).sort().values
    assert answer.token_map.stages[0][1][0].tolist() == kept.tolist()
    assert sizes[kept].sum() == 16
    positions = prompt.spans[0].positions
    places = (
        torch.tensor(
            [place for place in range(len(prompt.input_ids)) if place not in set(positions.tolist())]
            + positions[kept].tolist()
        )
        .sort()
        .values
    )
    embeds = model_inputs_embeds(family, prompt)
    embeds[0, positions] = features.to(embeds.dtype)
    of_token = torch.ones(embeds.shape[1])
    of_token[positions] = sizes
    is_visual = torch.zeros(embeds.shape[1], dtype=torch.bool)
    is_visual[positions] = True

    def mask(layer: int) -> Tensor:
        rows = torch.full((len(places), len(places)), torch.finfo(embeds.dtype).min)
        for row, asking in enumerate(places.tolist()):
            for column, place in enumerate(places[: row + 1].tolist()):
                size = 16 / 7 if layer == 0 and is_visual[place] else float(of_token[place])
                rows[row, column] = math.log(size) + math.log(2 - decay(model, asking - place))
        return rows[None, None]

    with torch.inference_mode():
        hidden = embeds[:, places]
        rope = model.rotary_emb(hidden, places[None])
        for number, layer in enumerate(model.layers):
            hidden = layer(hidden, attention_mask=mask(min(number, 1)), position_embeddings=rope)
    torch.testing.assert_close(seen[0][0], hidden[0, -1], atol=1e-4, rtol=1e-4)


def test_a_picture_that_keeps_everything_is_read_as_the_model_reads_it(llava_engine: Engine, picture: Picture) -> None:
    messages, generation = [user_message("What?", picture(90, 60))], Generation(max_tokens=6)
    expected = llava_engine.chat(messages, Pruning(method="none"), generation)
    answer = llava_engine.chat(messages, Pruning(method="divprune", keep=1.0, rectify="restore"), generation)
    assert answer.token_ids == expected.token_ids
    llava_engine.forget()


@pytest.mark.parametrize("method", METHODS)
def test_sequences_of_a_batch_are_rectified_by_themselves(
    llava_next_engine: Engine, picture: Picture, method: str
) -> None:
    llava_next_engine.forget()
    conversations = [
        [user_message("What?", picture(90, 60))],
        [user_message("What is shown in both of them?", picture(60, 60, 1), picture(90, 60, 2))],
    ]
    pruning, generation = Pruning.from_label(f"{method}:rectify=restore", 0.5), Generation(max_tokens=4)
    together = llava_next_engine.batch(conversations, pruning, generation)
    alone = [llava_next_engine.chat(messages, pruning, generation) for messages in conversations]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    for answer in together:
        usage = answer.usage
        assert usage.layer_average == pytest.approx(0.5 * usage.visual_tokens, abs=0.5 * len(usage.pictures))
    assert pruning.resolved()["positions"] == "original"
    assert "rectify=restore" in pruning.label


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "fastv"}, "rectify needs a method that prunes before the language model"),
        ({"merge": True}, "rectify and merge both use the dropped tokens"),
        ({"budget_per": "prompt"}, "leave out budget_per"),
        ({"positions": "contiguous"}, "keeps the original positions"),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Pruning(rectify="restore", **options)
