"""Compare this engine with transformers' `generate` on SmolLM2's real weights: 50 prompts without pictures."""

from pathlib import Path

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from benchmarks.smollm2.model import build, make_processor
from tops_engine import Engine, Generation, ModelSpec, Pruning, user_message

MAX_TOKENS = 64
SUBJECTS = (
    "the moon",
    "bread",
    "a bicycle",
    "photosynthesis",
    "the number pi",
    "a library",
    "rain",
    "the French Revolution",
    "a chess opening",
    "sleep",
)
REQUESTS = (
    "Explain {} in two sentences.",
    "Write a short poem about {}.",
    "List five facts about {}.",
    "What would a child ask about {}? Give three questions.",
    "Translate into French: I have read a book about {}.",
)
PROMPTS = tuple(request.format(subject) for subject in SUBJECTS for request in REQUESTS)


def main(folder: Path) -> None:
    """Print each prompt whose tokens differ, and how many are equal; exit with 1 if one differs."""
    if not (folder / "config.json").exists():
        processor = make_processor()
        build(processor).save_pretrained(folder)
        processor.save_pretrained(folder)
    engine = Engine.load(ModelSpec(model=str(folder), device="cpu", dtype="float32"))
    generation = Generation(max_tokens=MAX_TOKENS)
    answers = engine.batch([[user_message(prompt)] for prompt in PROMPTS], Pruning(method="none", keep=1.0), generation)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    different = 0
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        expected = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        tokens = expected[0, inputs["input_ids"].shape[1] :].tolist()
        if list(answer.token_ids) != tokens:
            different += 1
            print(f"{prompt}\n  engine:   {answer.text!r}\n  generate: {processor.decode(tokens)!r}")
    print(f"{len(PROMPTS) - different} of {len(PROMPTS)} prompts: the same tokens")
    raise SystemExit(different > 0)
