"""Compare HAWK with queries and keys of transformers' own layer, without the rotary embedding."""

from pathlib import Path

import pytest
import torch

from tests.conftest import Picture
from tests.support.checkpoints import save_llava
from tests.support.visual_tokens import random_tokens
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput
from tops_engine.methods import VisualTokens
from tops_engine.methods.hawk import HAWK, QWEN2_5_VL_7B
from tops_engine.settings import Generation, ModelSpec, Pruning


def test_heads_are_weighted_after_each_is_scaled_to_length_1() -> None:
    image = random_tokens([9], seed=1)
    products, weights = image.question_products(), (0.5, 0.1, 0.0, 0.4)
    scores = [0.0] * 9
    for head, weight in enumerate(weights):
        length = sum(float(value) ** 2 for value in products[:, head]) ** 0.5
        for token in range(9):
            scores[token] += weight * float(products[token, head]) / length
    (chosen,) = HAWK(head_weights=weights).select_visual([image], [4])
    assert chosen.indices.tolist() == sorted(sorted(range(9), key=lambda token: -scores[token])[:4])


def test_28_heads_have_the_published_weights_and_others_equal_ones() -> None:
    def chosen(num_heads: int, **options: str) -> list[int]:
        values = torch.randn(20, num_heads, generator=torch.Generator().manual_seed(num_heads))
        image = VisualTokens(**vars(random_tokens([20])) | {"question_products": lambda: values})
        return HAWK.model_validate(options).select_visual([image], [6])[0].indices.tolist()

    assert chosen(28) == chosen(28, head_weights=",".join(map(str, QWEN2_5_VL_7B)))
    assert chosen(28) != chosen(28, head_weights="+".join(["1"] * 28))
    assert chosen(4) == chosen(4, head_weights="1, 1, 1, 1")
    with pytest.raises(InvalidInput, match="has 2 weights, and the layer has 4 heads"):
        chosen(4, head_weights="1,2")


def test_products_are_those_of_the_first_layer_without_positions(tmp_path: Path, picture: Picture) -> None:
    engine = Engine.load(ModelSpec(model=str(save_llava(tmp_path, "mistral")), device="cpu"))
    family, messages = engine.family, [user_message("What is shown?", picture(80, 60))]
    prompt = family.prepare(read_conversation(messages))
    ((tokens,),) = family.encode([prompt])
    model = family.model.model.language_model
    block, config = model.layers[0], model.config
    ids = family.tokenizer("What is shown?", add_special_tokens=False, return_tensors="pt").input_ids[0]
    with torch.inference_mode():
        text = block.self_attn.q_proj(block.input_layernorm(model.embed_tokens(ids)))
        visual = block.self_attn.k_proj(block.input_layernorm(tokens.features))
        size = config.hidden_size // config.num_attention_heads
        share = config.num_attention_heads // config.num_key_value_heads
        expected = torch.stack(
            [
                (
                    visual.view(16, -1, size)[:, head // share] @ text.view(len(ids), -1, size)[:, head].T / size**0.5
                ).mean(dim=1)
                for head in range(config.num_attention_heads)
            ],
            dim=1,
        )
        torch.testing.assert_close(tokens.question_products(), expected, atol=1e-5, rtol=1e-5)
    answer = engine.chat(messages, Pruning(method="hawk", keep=0.5), Generation(max_tokens=1))
    best = torch.nn.functional.normalize(expected, dim=0).sum(dim=1).topk(8).indices.sort().values
    assert answer.token_map.stages[0][1][0].tolist() == best.tolist()
