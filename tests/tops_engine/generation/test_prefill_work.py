"""Test the work that a prefill avoids: masks where the kernel's causal flag is enough, whole attention maps, the vision
tower more than once a batch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.conftest import Picture
from tests.support.checkpoints import save_llava, save_llava_next
from tests.support.checkpoints_internvl import save_internvl
from tests.support.checkpoints_qwen import save_qwen2_5_vl, save_qwen3_vl
from tests.support.checkpoints_video import save_onevision
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.settings import Generation, ModelSpec, Pruning

GENERATION = Generation(max_tokens=1)


@pytest.fixture
def attention_masks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record the mask of every attention in the decoder, as torch's kernel gets it."""
    masks: list[Any] = []
    attend: Any = torch.nn.functional.scaled_dot_product_attention

    def noted(*tensors: torch.Tensor, **options: Any) -> Any:
        mask = options.get("attn_mask")
        if options.get("is_causal") or mask is not None:
            masks.append(mask)
        return attend(*tensors, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    return masks


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_no_masks(llava_engine: Engine, picture: Picture, attention_masks: list[Any], keep: float) -> None:
    messages = [[user_message(text, picture())] for text in ("What is shown?", "What?")]
    llava_engine.forget()
    llava_engine.batch(messages[:1], Pruning(keep=keep), GENERATION)
    assert len(attention_masks) == llava_engine.family.decoder.num_layers
    llava_engine.batch(messages, Pruning(keep=keep), GENERATION)
    assert all(mask is None for mask in attention_masks)


class Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that records the size of the largest created tensor."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        return result


def test_only_the_rows_of_raters_are_computed(llava_engine: Engine) -> None:
    decoder, num_tokens, num_raters = llava_engine.family.decoder, 300, 5
    hidden = torch.randn(num_tokens, decoder.text_model.config.hidden_size)
    cos, sin = decoder.rope(hidden[None], torch.arange(num_tokens)[None], decoder.layer_types[3])
    asking, rated = torch.arange(num_tokens - num_raters, num_tokens), torch.arange(num_tokens - 10)
    with torch.no_grad(), Sizes() as sizes:  # type: ignore[no-untyped-call]
        decoder.attention_rows(3, hidden, (cos[0], sin[0]), asking, rated)
    keys, rows = (decoder.shape.num_heads * num_tokens * size for size in (decoder.shape.head_dim, num_raters))
    assert sizes.largest <= max(keys, rows)  # a whole map has num_tokens rows


@contextmanager
def counted(module: torch.nn.Module) -> Iterator[list[int]]:
    sizes: list[int] = []
    handle = module.register_forward_hook(lambda *call: sizes.append(1))
    try:
        yield sizes
    finally:
        handle.remove()


TOWERS: dict[str, tuple[Callable[..., Path], str]] = {
    "llava-1.5": (save_llava, "vision_tower"),
    "llava-next": (save_llava_next, "vision_tower"),
    "llava-onevision": (save_onevision, "vision_tower"),
    "qwen2.5-vl": (save_qwen2_5_vl, "visual"),
    "qwen3-vl": (save_qwen3_vl, "visual"),
    "internvl": (save_internvl, "vision_tower"),
}


@pytest.mark.parametrize("name", TOWERS)
def test_all_tiles_of_all_pictures_go_through_the_tower_at_once(name: str, picture: Picture, tmp_path: Path) -> None:
    save, tower = TOWERS[name]
    engine = Engine.load(ModelSpec(model=str(save(tmp_path)), device="cpu"))
    wide, tall = picture(110, 70, 1), picture(70, 110, 2)
    conversations = [[user_message("Compare.", wide, tall)], [user_message("What is shown?", tall)]]
    with counted(getattr(engine.family.model.model, tower)) as calls:
        engine.batch(conversations, Pruning(keep=0.5), GENERATION)
    assert len(calls) == 1
