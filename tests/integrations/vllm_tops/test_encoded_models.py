"""Compare what vLLM's own model classes make of encoded pictures with the engine, without our plugin."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Picture
from tests.support.checkpoints import save_llava, save_llava_next, save_siglip_llava
from tests.support.checkpoints_internvl import save_internvl
from tests.support.checkpoints_video import save_onevision
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.encoding.encoder import PictureEncoder
from tops_engine.encoding.kept_tokens import kept_tokens
from tops_engine.engine import Engine
from tops_engine.media.images import open_image
from tops_engine.settings import ModelSpec, Pruning

pytestmark = pytest.mark.vllm

# vLLM's attention on a CPU requires a head size of at least 32.
HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2}

BUILDERS: dict[str, Callable[..., Path]] = {
    "llava": save_llava,
    "llava-siglip": save_siglip_llava,
    "llava-next": save_llava_next,
    "llava-onevision": partial(save_onevision, grid=4, most_tiles=9),
    "internvl": save_internvl,
}

KEEP = 5


class Served:
    """A checkpoint that vLLM and an encoder have loaded."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        from vllm.config import set_current_vllm_config
        from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
        from vllm.engine.arg_utils import EngineArgs
        from vllm.model_executor.model_loader import get_model
        from vllm.multimodal import MULTIMODAL_REGISTRY

        arguments = EngineArgs(
            model=str(folder), dtype="float32", enforce_eager=True, max_model_len=1024, enable_mm_embeds=True
        )
        config = arguments.create_engine_config()
        stack.enter_context(set_current_vllm_config(config))
        init_distributed_environment(1, 0, f"file://{folder / 'rendezvous'}", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        self.model: Any = get_model(vllm_config=config)
        self.processor = MULTIMODAL_REGISTRY.create_processor(config.model_config)
        self.encoder = PictureEncoder(ModelSpec(model=str(folder), device="cpu"), Pruning(keep=KEEP))
        self.engine = Engine.load(ModelSpec(model=str(folder), device="cpu"))

    def read(self, *pictures: str) -> torch.Tensor:
        """Return the tensors that vLLM reads from encoded pictures, stacked as it stacks them."""
        from vllm.multimodal.media.image import ImageEmbeddingMediaIO

        return torch.stack([ImageEmbeddingMediaIO().load_base64("", picture) for picture in pictures])


@pytest.fixture(scope="module", params=list(BUILDERS))
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = BUILDERS[request.param](tmp_path_factory.mktemp("vllm") / request.param, **HEADS)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.delenv("TOPS_KEEP", raising=False)
        # vLLM's own runner for CPUs does this before it loads a model.
        patch.setattr(torch.accelerator, "empty_cache", lambda: None)
        yield Served(folder, stack)


def test_vllm_reads_the_prompt_and_the_tokens_that_the_engine_keeps(served: Served, picture: Picture) -> None:
    from vllm.multimodal.utils import group_and_batch_mm_kwargs

    images = [picture(160, 120, 1), picture(60, 160, 2)]
    encoded = [served.encoder.encode(image) for image in images]
    family = served.engine.family
    # The prompt before the placeholders of its pictures are multiplied.
    prompt = family.text_of(read_conversation([user_message("What is shown?", *images)]))
    embeds = served.read(*(one.image_embeds for one in encoded))
    items = served.processor.info.parse_mm_data({"image": embeds})
    inputs: Any = served.processor(prompt, mm_items=items, hf_processor_mm_kwargs={})
    token = family.model.config.image_token_id
    ids = list(inputs["prompt_token_ids"])
    whole = family.prepare(read_conversation([user_message("What is shown?", *images)])).input_ids.tolist()
    assert [one for one in ids if one != token] == [one for one in whole if one != token]
    assert ids.count(token) == 2 * KEEP
    assert [place.get_num_embeds() for place in inputs["mm_placeholders"]["image"]] == [KEEP, KEEP]
    features = [("image", item) for item in inputs["mm_kwargs"]["image"]]
    ((_, _, fields),) = group_and_batch_mm_kwargs(features, device="cpu")
    with torch.inference_mode():
        tokens = served.model.embed_multimodal(**fields)
    pruning = served.encoder.runs(None)
    for image, found in zip(images, tokens, strict=True):
        (expected,) = kept_tokens(family, [open_image(image)], pruning)
        assert torch.equal(found, expected.features)


def test_pictures_of_different_lengths_end_vllm(served: Served, picture: Picture) -> None:
    # If this fails, vLLM takes them, and an encoder need not keep one number for all pictures.
    from vllm.multimodal.utils import group_and_batch_mm_kwargs

    (long, short) = (served.encoder.encode(picture(160, 120, 1), Pruning(keep=keep)) for keep in (6, 4))
    features = []
    for one in (long, short):
        items = served.processor.info.parse_mm_data({"image": served.read(one.image_embeds)})
        prompt = served.engine.family.text_of(read_conversation([user_message("?", picture(160, 120, 1))]))
        inputs: Any = served.processor(prompt, mm_items=items, hf_processor_mm_kwargs={})
        features += [("image", item) for item in inputs["mm_kwargs"]["image"]]
    ((_, _, fields),) = group_and_batch_mm_kwargs(features, device="cpu")
    with pytest.raises(ValueError, match="contains inconsistent shapes"):
        served.model.embed_multimodal(**fields)
