"""Compare the formulas with torch's counts and the cache's contents in real runs."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Picture
from tests.support.checkpoints import NUM_PATCHES, save_llava, save_llava_next, save_siglip_llava
from tests.support.checkpoints_gemma import save_gemma3
from tests.support.checkpoints_idefics3 import save_smolvlm
from tests.support.checkpoints_internvl import save_internvl
from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.device.clock import Clock
from tops_engine.engine import Engine
from tops_engine.flops import DecoderShape
from tops_engine.generation.batch_state import EmbeddedPrompt
from tops_engine.generation.decode import Decoding
from tops_engine.generation.planning import plan_groups
from tops_engine.generation.prefill import Prefill
from tops_engine.loading import load_family
from tops_engine.methods.sparsevlm import num_clusters, num_recycled
from tops_engine.settings import Generation, ModelSpec, Pruning

Ask = Callable[[Engine, Pruning, int], tuple[Answer, int]]

VISION_WIDTH = 64


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2"])
def llava(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Load LLaVA-1.5 with each kind of decoder; all but llama have two query heads for a key head."""
    folder = save_llava(tmp_path_factory.mktemp("flops"), request.param)
    return Engine.load(ModelSpec(model=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def llava_next(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Load LLaVA-NeXT with mistral: tiles and grouped queries."""
    folder = save_llava_next(tmp_path_factory.mktemp("flops"), "mistral")
    return Engine.load(ModelSpec(model=str(folder), device="cpu"))


@pytest.fixture
def ask(picture: Picture) -> Ask:
    """Ask about pictures and return the answer and the FLOPs that torch counted."""

    def run(engine: Engine, pruning: Pruning, num_pictures: int) -> tuple[Answer, int]:
        engine.forget()  # the pictures and prompts of other tests
        pictures = [picture(100, 70, seed) for seed in range(num_pictures)]
        # The counter knows the products of attention written out, not the fused kernel of the CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            answer = engine.chat([user_message("What is this?", *pictures)], pruning, Generation(max_tokens=3))
        return answer, counter.get_total_flops()

    return run


@pytest.mark.parametrize(
    ("pruning", "num_pictures"), [(Pruning(method="none"), 1), (Pruning(method="random", keep=0.3), 2)]
)
def test_flops_of_llava_are_those_torch_counts(llava: Engine, ask: Ask, pruning: Pruning, num_pictures: int) -> None:
    answer, counted = ask(llava, pruning, num_pictures)

    assert answer.flops.total == counted
    assert answer.usage.completion_tokens > 1


@pytest.mark.parametrize(
    ("pruning", "num_pictures"), [(Pruning(method="none"), 1), (Pruning(method="random", keep=0.3), 2)]
)
def test_flops_of_llava_next_and_its_tiles_are_those_torch_counts(
    llava_next: Engine, ask: Ask, pruning: Pruning, num_pictures: int
) -> None:
    answer, counted = ask(llava_next, pruning, num_pictures)

    assert answer.flops.total == counted


@pytest.mark.parametrize("save", [save_gemma3, save_internvl, save_siglip_llava, save_smolvlm])
@pytest.mark.parametrize("num_pictures", [1, 2])
def test_flops_of_families_with_other_towers_are_those_torch_counts(
    tmp_path: Path, ask: Ask, save: Callable[..., Path], num_pictures: int
) -> None:
    engine = Engine.load(ModelSpec(model=str(save(tmp_path)), device="cpu"))
    answer, counted = ask(engine, Pruning(method="random", keep=0.3), num_pictures)

    assert answer.flops.total == counted


def test_flops_without_a_picture_are_those_torch_counts(llava_engine: Engine, ask: Ask) -> None:
    answer, counted = ask(llava_engine, Pruning(), 0)

    assert answer.flops.total == counted
    assert answer.flops.vision == answer.flops.selection == 0


def test_the_parts_of_a_run_are_those_of_the_original_model(llava_engine: Engine, ask: Ask) -> None:
    answer, _ = ask(llava_engine, Pruning(method="none"), 1)
    model = load_family(llava_engine.spec).model
    inputs = torch.zeros(1, answer.usage.prompt_tokens, dtype=torch.long)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as vision:
            model.model.get_image_features(torch.zeros(1, 3, 56, 56))
        with FlopCounterMode(display=False) as prefill:
            cache = model(input_ids=inputs, logits_to_keep=1).past_key_values
        with FlopCounterMode(display=False) as decode:
            for _ in range(answer.usage.completion_tokens - 1):
                cache = model(input_ids=inputs[:, :1], past_key_values=cache).past_key_values

    assert answer.flops.vision == vision.get_total_flops()
    assert answer.flops.prefill == prefill.get_total_flops()
    assert answer.flops.decode == decode.get_total_flops()


@pytest.mark.parametrize(("kind", "raters"), [("llava", "dynamic"), ("llava_next", "last"), ("llava_next", "all")])
def test_flops_with_tops_differ_from_torchs_by_the_steps_and_two_small_products(
    request: pytest.FixtureRequest, llava_engine: Engine, llava_next_engine: Engine, ask: Ask, kind: str, raters: str
) -> None:
    engine, num_tiles = {"llava": (llava_engine, 1), "llava_next": (llava_next_engine, 5)}[kind]
    answer, counted = ask(engine, Pruning(keep=0.3, raters=raters), 1)

    stages = [answer.usage.visual_tokens, *(stage.visual_tokens[0] for stage in answer.usage.stages)]
    assert stages == sorted(set(stages), reverse=True), "every stage has to drop something for this test"
    # Not matrix products: each greedy step looks at one row of the similarities.
    steps = sum(before * after for before, after in itertools.pairwise(stages))
    # Not in the formula: the attention of [CLS] in the vision tower ...
    cls_rows = 2 * num_tiles * (NUM_PATCHES + 1) * VISION_WIDTH
    # ... and the weighted mean over the raters, of the text after the picture, at the two stages inside the decoder.
    num_text = len(load_family(engine.spec).tokenizer("\nWhat is this? ASSISTANT:", add_special_tokens=False).input_ids)
    mean = 2 * num_text * sum(stages[1:-1]) if raters == "dynamic" else 0
    assert counted - answer.flops.total == cls_rows + mean - steps


@pytest.mark.parametrize("method", ["fastv", "fastv_window", "pyramiddrop", "dart", "fitprune"])
@pytest.mark.parametrize("num_pictures", [1, 2])
def test_flops_of_methods_inside_are_those_torch_counts(
    llava: Engine, ask: Ask, method: str, num_pictures: int
) -> None:
    answer, counted = ask(llava, Pruning(method=method, keep=0.6), num_pictures)

    assert answer.flops.total == counted
    assert answer.flops.selection > 0


def test_flops_of_sparsevlm_hold_distances_that_torch_does_not_count(llava_next: Engine, ask: Ask) -> None:
    answer, counted = ask(llava_next, Pruning(method="sparsevlm", keep=0.6, layers=[2]), 1)

    before, after = answer.usage.visual_tokens, answer.usage.stages[1].visual_tokens[0]
    recycled = num_recycled(before - after + num_clusters(before, after))
    assert answer.flops.total - counted == 2 * recycled**2 * llava_next.family.decoder.shape.hidden_size


@pytest.mark.parametrize(("kind", "pruning"), [("llama", Pruning(method="none")), ("mistral", Pruning(keep=0.3))])
def test_cache_bytes_are_those_of_the_filled_slots(
    tmp_path: Path, picture: Picture, kind: str, pruning: Pruning
) -> None:
    spec = ModelSpec(model=str(save_llava(tmp_path, kind)), device="cpu")
    family, messages = load_family(spec), [user_message("What is this?", picture())]
    answer = Engine(spec).chat(messages, pruning, Generation(max_tokens=3))
    with torch.inference_mode():
        prompt = family.prepare(read_conversation(messages))
        (images,) = family.encode([prompt])
        (groups,) = plan_groups([prompt], pruning, family.decoder.num_layers)
        spans = [span.positions for span in prompt.spans]
        embedded = EmbeddedPrompt(prompt.input_ids, prompt.position_ids, spans, images, groups)
        clock = Clock(family.decoder.device)
        prefilled = Prefill(
            family.decoder, [embedded], pruning.method_instance, pruning.resolved_positions, clock
        ).run()
        decoding = Decoding(family.decoder, prefilled.cache, prefilled.segments)
        for _ in range(answer.usage.completion_tokens - 1):
            decoding.step(torch.tensor([7]))
        # Appending nothing returns what is there.
        shape, cache = family.decoder.shape, prefilled.cache
        nothing = torch.empty(1, shape.num_kv_heads, 0, shape.head_dim)
        held = [tensor for layer in range(shape.num_layers) for tensor in cache.update(nothing, nothing, layer)]

    assert answer.kv_cache_bytes == sum(tensor.numel() * tensor.element_size() for tensor in held)


def test_a_layer_by_hand() -> None:
    shape = DecoderShape(
        num_layers=2, hidden_size=8, num_heads=4, num_kv_heads=2, head_dim=3, intermediate_size=10, vocab_size=11
    )

    # Five queries, seven keys. q and o are 8 x 12, k and v 8 x 6, three feed-forward matrices 8 x 10.
    by_hand = 2 * 5 * (2 * 8 * 12 + 2 * 8 * 6 + 3 * 8 * 10) + 2 * 2 * 5 * 7 * 12
    assert shape.layer_flops(0, 5, 7) == by_hand
    assert shape.prefill_flops([5, 3]) == shape.layer_flops(0, 5, 5) + shape.layer_flops(1, 3, 3) + 2 * 8 * 11
    assert shape.decode_flops([5, 3], 2) == sum(
        shape.layer_flops(0, 1, keys) + shape.layer_flops(1, 1, keys - 2) + 2 * 8 * 11 for keys in (6, 7)
    )
    # Keys and values of 8 prompt slots and of 2 new tokens in 2 layers: 2 heads of 3 values of 2 bytes.
    assert shape.kv_cache_bytes([5, 3], 2, 2) == 2 * (8 + 2 * 2) * 2 * 3 * 2
