"""Test mini's text tower: CLIP's layout, and the patches that it finds for a question."""

from collections import defaultdict

import pytest
import torch
from safetensors.torch import load_file

from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.mini import mini_path
from tops_engine.mini.scenes import generate, is_correct
from tops_engine.settings import Generation, ModelSpec, Pruning


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(ModelSpec(model="mini", device="cpu"))


def test_it_is_small_and_has_clips_names() -> None:
    folder = mini_path() / "clip"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1e6
    names = set(load_file(folder / "model.safetensors"))
    assert {"text_projection.weight", "visual_projection.weight", "vision_model.post_layernorm.weight"} < names
    assert {"text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.weight"} < names
    assert not any(name.startswith("vision_model.encoder") for name in names)


def test_the_patches_a_question_is_about_are_the_least_similar(engine: Engine) -> None:
    """Check that low similarity marks the subject, as in CLIP, where TRIM and CDPruner negate the similarity."""
    found: dict[str, list[float]] = defaultdict(list)
    for seed in range(6000, 6020):
        scene = generate(seed, "test")
        patches_of = scene.patches_of_objects(12)
        for question in scene.questions:
            subject = sorted(set().union(*(patches_of[index] for index in question.subject)))
            if not subject:
                continue
            prompt = engine.family.prepare(read_conversation([user_message(question.text, scene.image)]))
            with torch.inference_mode():
                ((image,),) = engine.family.encode([prompt])
                embedded = image.clip_embeddings(None)
            for similarity in (
                torch.cosine_similarity(embedded.patches, embedded.question, dim=-1),
                embedded.patches @ embedded.question,
            ):
                best = set(similarity.topk(len(subject), largest=False).indices.tolist())
                found[question.kind].append(len(best & set(subject)) / len(subject))
    shares = {kind: sum(values) / len(values) for kind, values in found.items()}
    # A random choice would find 2 to 20 %.
    assert min(shares.values()) > 0.8, shares


@pytest.mark.parametrize("method", ["trim", "cdpruner"])
def test_methods_that_read_the_question_answer_from_few_tokens(engine: Engine, method: str) -> None:
    hits = []
    for seed in range(7000, 7010):
        scene = generate(seed, "test")
        for question in scene.questions:
            if question.kind in ("colour", "shape", "digit"):
                messages = [user_message(question.text, scene.image)]
                answer = engine.chat(messages, Pruning(method=method, keep=0.111), Generation(max_tokens=12))
                assert answer.usage.layer_average == 16
                hits.append(is_correct(question, answer.text))
    assert sum(hits) / len(hits) > 0.8
