"""Compare vLLM's pruned model classes with the engine: both give the same tokens for a picture."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from vllm_tops.settings import for_vllm, kept_tokens

from tests.conftest import Picture
from tests.support.checkpoints import save_llava, save_llava_next, save_siglip_llava
from tests.support.checkpoints_gemma import save_gemma3
from tests.support.checkpoints_internvl import save_internvl
from tests.support.checkpoints_qwen import (
    save_qwen2_5_vl,
    save_qwen2_vl,
    save_qwen3_5,
    save_qwen3_5_moe,
    save_qwen3_vl,
    save_qwen3_vl_moe,
)
from tests.support.checkpoints_video import save_onevision
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.settings import ModelSpec, Pruning

pytestmark = pytest.mark.vllm

# vLLM's attention on a CPU requires a head size of at least 32.
HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2}

# The shares of time, rows and columns in half of such a head.
BLOCKS: dict[str, Any] = {"type": "mrope", "mrope_section": [4, 6, 6]}
INTERLEAVED: dict[str, Any] = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [6, 5, 5]}

BUILDERS: dict[str, Callable[..., Path]] = {
    # First, because vLLM makes the group of ranks that share experts only with the first model of a process.
    "qwen3-vl-moe": partial(save_qwen3_vl_moe, head_dim=32, rope_scaling=INTERLEAVED),
    "qwen3.5-moe": save_qwen3_5_moe,
    "llava": save_llava,
    "llava-siglip": save_siglip_llava,
    "llava-next": save_llava_next,
    # As published: at most the tokens of nine tiles, so that those of 4 x 4 tiles are scaled down.
    "llava-onevision": partial(save_onevision, grid=4, most_tiles=9),
    "internvl": save_internvl,
    # The tower of the 38B and 78B models normalises queries and keys.
    "internvl-6b-tower": partial(save_internvl, vision={"use_qk_norm": True, "norm_type": "rms_norm"}),
    "qwen2-vl": partial(save_qwen2_vl, rope_scaling=BLOCKS),
    "qwen2.5-vl": partial(save_qwen2_5_vl, rope_scaling=BLOCKS),
    "qwen3-vl": partial(save_qwen3_vl, head_dim=32, rope_scaling=INTERLEAVED),
    "qwen3.5": save_qwen3_5,
    "gemma3": partial(save_gemma3, newlines=True),
}

METHODS = ["tops", "tops:criteria=relevance", "divprune", "pooling", "random", "scope", "visionzip"]

SIZES = [(160, 120), (60, 160), (112, 56), (33, 90), (400, 380), (230, 150)]


class Served:
    """A checkpoint that vLLM and the engine have loaded."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        from vllm.config import set_current_vllm_config
        from vllm.engine.arg_utils import EngineArgs
        from vllm.model_executor.model_loader import get_model
        from vllm.multimodal import MULTIMODAL_REGISTRY

        arguments = EngineArgs(model=str(folder), dtype="float32", enforce_eager=True, max_model_len=1024)
        config = arguments.create_engine_config()
        stack.enter_context(set_current_vllm_config(config))
        _one_rank(folder)
        self.model: Any = get_model(vllm_config=config)
        self.processor = MULTIMODAL_REGISTRY.create_processor(config.model_config)
        self.engine = Engine.load(ModelSpec(model=str(folder), device="cpu"))
        self.width = self.engine.family.model.config.get_text_config().hidden_size

    def request(self, images: Sequence[Image.Image], **options: Any) -> dict[str, Any]:
        """Process a request with pictures and ``mm_processor_kwargs`` as vLLM does."""
        items = self.processor.info.parse_mm_data({"image": list(images)})
        config = self.engine.family.model.config
        token = getattr(config, "boi_token_index", config.image_token_id)
        inputs: Any = self.processor([token] * len(images), mm_items=items, hf_processor_mm_kwargs=options)
        return {
            "counts": [place.get_num_embeds() for place in inputs["mm_placeholders"]["image"]],
            "hashes": inputs["mm_hashes"]["image"],
            "features": [("image", item) for item in inputs["mm_kwargs"]["image"]],
        }

    def embeddings(self, *requests: dict[str, Any]) -> list[Tensor]:
        """Return the tokens that the language model gets for the pictures of requests that run at once."""
        from vllm.multimodal.utils import group_and_batch_mm_kwargs

        features = [feature for request in requests for feature in request["features"]]
        ((_, _, pixels),) = group_and_batch_mm_kwargs(features, device="cpu")
        with torch.inference_mode():
            # A Qwen-VL token is followed by deepstack features and its coordinates; see test_qwen.py.
            return [tokens[:, : self.width] for tokens in self.model.embed_multimodal(**pixels)]

    def expected(self, image: Image.Image, pruning: Pruning) -> tuple[Tensor, Tensor]:
        """Return the tokens of a picture that the engine keeps: indices and features."""
        family = self.engine.family
        with torch.inference_mode():
            ((tokens,),) = family.encode([family.prepare(read_conversation([user_message("?", image)]))])
            count = kept_tokens(pruning, tokens.layout.num_tokens)
            (selection,) = pruning.method_instance.select_visual([tokens], [count])
        features = tokens.features[selection.indices] if selection.features is None else selection.features
        return selection.indices, features


def _one_rank(folder: Path) -> None:
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment

    init_distributed_environment(1, 0, f"file://{folder / 'rendezvous'}", 0, "gloo")
    ensure_model_parallel_initialized(1, 1)


@pytest.fixture(scope="module", params=list(BUILDERS))
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    import vllm_tops

    folder = BUILDERS[request.param](tmp_path_factory.mktemp("vllm") / request.param, **HEADS)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("TOPS_KEEP", "0.5")
        # vLLM's own runner for CPUs does this before it loads a model.
        patch.setattr(torch.accelerator, "empty_cache", lambda: None)
        vllm_tops.register()
        yield Served(folder, stack)


def assert_same(tokens: Tensor, features: Tensor) -> None:
    """Check equality up to the rounding of other kernels; random tokens differ by about their own size."""
    scale = features.abs().max()
    torch.testing.assert_close(tokens / scale, features / scale, atol=2e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_becomes_the_tokens_that_the_engine_keeps(
    served: Served, picture: Picture, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("TOPS_METHOD", method)
    images = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    request = served.request(images)
    pruning = for_vllm(Pruning.from_label(method, 0.5))
    for image, count, tokens in zip(images, request["counts"], served.embeddings(request), strict=True):
        indices, features = served.expected(image, pruning)
        assert count == len(tokens) == len(indices)
        assert_same(tokens, features)


def test_the_indices_are_the_engines_at_every_budget(
    served: Served, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOPS_METHOD", raising=False)
    image = picture(90, 70, 7)
    for keep in ("2", "5", "0.3", "0.9"):
        monkeypatch.setenv("TOPS_KEEP", keep)
        request = served.request([image])
        (tokens,) = served.embeddings(request)
        indices, _ = served.expected(image, for_vllm(Pruning.from_label("tops", keep)))
        with torch.inference_mode():
            family = served.engine.family
            ((unpruned,),) = family.encode([family.prepare(read_conversation([user_message("?", image)]))])
        nearest = torch.cdist(tokens, unpruned.features).argmin(dim=1)
        assert request["counts"] == [len(indices)]
        assert nearest.tolist() == indices.tolist()


def test_all_tokens_are_kept_where_nothing_is_to_be_dropped(
    served: Served, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOPS_KEEP", "1.0")
    image = picture(80, 60)
    request = served.request([image])
    (tokens,) = served.embeddings(request)
    _, features = served.expected(image, for_vllm(Pruning(keep=1.0)))
    assert request["counts"] == [len(features)]
    assert_same(tokens, features)


def test_a_budget_below_one_token_is_refused(served: Served, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPS_KEEP", "0.001")
    with pytest.raises(ValueError, match=r"keep=0\.001 leaves less than one of \d+ visual tokens"):
        served.request([picture(80, 60)])


def test_requests_that_run_together_keep_what_each_asks_for(served: Served, picture: Picture) -> None:
    images = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    asked: list[tuple[dict[str, Any], list[Image.Image]]] = [
        ({"tops_keep": 0.2}, images[:2]),
        ({}, images[2:3]),
        ({"tops_keep": 3}, images[3:]),
        ({"tops_keep": 0.5}, images[:1]),
    ]
    requests = [served.request(images, **options) for options, images in asked]
    embeddings = iter(served.embeddings(*requests))
    for (options, images), request in zip(asked, requests, strict=True):
        pruning = for_vllm(Pruning(keep=options.get("tops_keep", 0.5)))
        for image, count in zip(images, request["counts"], strict=True):
            indices, features = served.expected(image, pruning)
            tokens = next(embeddings)
            assert count == len(tokens) == len(indices)
            assert_same(tokens, features)


def test_caches_know_a_picture_by_what_is_kept_of_it(
    served: Served, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(160, 120)
    by_default, half, fifth, three = (
        served.request([image], **options)["hashes"]
        for options in ({}, {"tops_keep": 0.5}, {"tops_keep": 0.2}, {"tops_keep": 3})
    )
    assert by_default == half
    assert half != fifth != three != half
    monkeypatch.setenv("TOPS_METHOD", "divprune")
    assert served.request([image])["hashes"] != by_default


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tops_keep": 0.6}, r"tops_keep=0\.6 keeps \d+ of a picture's \d+ tokens, but .* for \d+ \(TOPS_KEEP=0\.5\)"),
        ({"tops_keep": 10**400}, r"ask for 0\.5 or less"),
        ({"tops_keep": 0}, "keep=0 is not allowed: give a fraction above 0 and up to 1.0"),
        ({"tops_keep": None}, "keep=None is not allowed: give a fraction above 0 and up to 1.0"),
        ({"tops_keep": 0.001}, r"keep=0\.001 leaves less than one of \d+ visual tokens"),
        ({"tops_method": "fastv"}, "A request may set tops_keep, not 'tops_method': this server prunes by tops"),
    ],
)
def test_a_request_that_asks_for_what_it_cannot_have_is_refused(
    served: Served, picture: Picture, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        served.request([picture(160, 120)], **options)
    assert served.request([picture(160, 120)])["counts"]
