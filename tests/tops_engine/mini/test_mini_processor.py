"""Test mini's tokenizer, chat template and picture processor."""

import pytest
from PIL import Image
from transformers import AutoProcessor, LlavaProcessor

from tops_engine.mini import mini_path


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return AutoProcessor.from_pretrained(mini_path())


@pytest.mark.parametrize(
    "text",
    [
        "What colour is the circle?",
        "Grüße, naïve 日本語",
        "an emoji \U0001f600\U0001f468‍\U0001f469",
        "tabs\tand \n\n lines  ",
        "KITE",
        "",
    ],
)
def test_any_text_survives_the_tokenizer(processor: LlavaProcessor, text: str) -> None:
    ids = processor.tokenizer.encode(text, add_special_tokens=False)
    assert processor.tokenizer.decode(ids) == text


def test_upper_case_words_are_spelled_letter_by_letter(processor: LlavaProcessor) -> None:
    assert processor.tokenizer.tokenize("KITE") == list("KITE")


def test_the_special_tokens_are_single_tokens(processor: LlavaProcessor) -> None:
    tokenizer = processor.tokenizer
    specials = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, processor.image_token]
    assert specials == ["<s>", "</s>", "<pad>", "<image>"]
    assert all(len(tokenizer.encode(token, add_special_tokens=False)) == 1 for token in specials)


def test_the_template_takes_roles_strings_parts_and_two_images(processor: LlavaProcessor) -> None:
    picture, text = {"type": "image"}, {"type": "text", "text": "What is this?"}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [picture, picture, text]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "Sure?"},
    ]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert prompt == (
        "<s>Be brief.\nUser: <image>\n<image>\nWhat is this?\nAssistant: red</s>\nUser: Sure?\nAssistant:"
    )
    images = [Image.new("RGB", (300, 200)), Image.new("L", (50, 90))]
    inputs = processor(text=prompt, images=images, return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 168, 168)
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == 2 * 144
    assert inputs["input_ids"][0, 0] == processor.tokenizer.bos_token_id
    assert int((inputs["input_ids"] == processor.tokenizer.bos_token_id).sum()) == 1


def test_without_a_generation_prompt_the_answer_ends_with_eos(processor: LlavaProcessor) -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    assert processor.apply_chat_template(messages, tokenize=False) == "<s>User: Hello\nAssistant: Hi</s>\n"


def test_an_unknown_role_is_refused(processor: LlavaProcessor) -> None:
    with pytest.raises(Exception, match="Unknown role: robot"):
        processor.apply_chat_template([{"role": "robot", "content": "Hi"}], tokenize=False)
