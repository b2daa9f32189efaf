"""Stage `tokenizer`: learn a byte-level BPE, define the chat template, and save mini's processor.

Every capital letter is a token of its own, so that upper-case words are spelled letter by letter.
"""

import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from benchmarks.mini.data import PATCH, objects_of
from tops_engine.mini.questions import ask
from tops_engine.mini.scenes import SIDE

SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
SYSTEMS = (
    "You are a helpful assistant.",
    "You answer questions about pictures.",
    "A chat between a curious user and an assistant. The assistant gives helpful answers to the user's questions.",
    "Answer the questions about the picture.",
    "Be brief and exact.",
)
GREETINGS = (
    ("Hello", "Hello! Show me a picture and ask me about it."),
    ("Hello!", "Hello! Show me a picture and ask me about it."),
    ("Hi", "Hello! Show me a picture and ask me about it."),
    ("Good morning", "Hello! Show me a picture and ask me about it."),
    ("Who are you?", "I am mini, a small model. I answer questions about pictures."),
    ("What are you?", "I am mini, a small model. I answer questions about pictures."),
    ("What is your name?", "I am mini, a small model. I answer questions about pictures."),
    ("What can you do?", "I can name the shapes, colours, numbers and words in a picture."),
    ("Help", "I can name the shapes, colours, numbers and words in a picture."),
    ("Thank you", "You are welcome."),
    ("Thanks!", "You are welcome."),
    ("Goodbye", "Goodbye!"),
)
NO_PICTURE = "There is no picture."
ORDINALS = ("first", "second")

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set opening = '' %}
    {%- elif message['role'] == 'user' %}
        {%- set opening = 'User: ' %}
    {%- elif message['role'] == 'assistant' %}
        {%- set opening = 'Assistant: ' %}
    {%- else %}
        {{- raise_exception('Unknown role: ' ~ message['role']) }}
    {%- endif %}
    {{- opening }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] if part['type'] == 'image' %}
            {{- '<image>\\n' }}
        {%- endfor %}
        {%- for part in message['content'] if part['type'] == 'text' %}
            {{- part['text'] }}
        {%- endfor %}
    {%- endif %}
    {{- eos_token + '\\n' if message['role'] == 'assistant' else '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}
"""


def _corpus(scenes: int) -> list[str]:
    """Return the text of training questions and answers in all wordings, plus the fixed sentences."""
    rng = random.Random("mini corpus")
    lines = [line for pair in GREETINGS for line in pair] * 20 + [*SYSTEMS, NO_PICTURE] * 20
    for seed in range(scenes):
        for question in ask(objects_of(seed, "train"), SIDE, rng):
            lower = question.text[0].lower() + question.text[1:]
            lines += [f"User: {question.text}\nAssistant: {question.answer}", f"In the first picture, {lower}"]
            lines += [f"In the second picture, {lower}"]
    return lines


def build(grid: int, size: int = 1024, scenes: int = 3000) -> LlavaProcessor:
    """Learn the tokenizer and wrap it, with the image processor, into a LlavaProcessor."""
    tokenizer = Tokenizer(models.BPE())
    capitals = pre_tokenizers.Split(Regex("[A-Z]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([capitals, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=20,
    )
    tokenizer.train_from_iterator(_corpus(scenes), trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": grid * PATCH},
        crop_size={"height": grid * PATCH, "width": grid * PATCH},
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def save(folder: Path, grid: int) -> None:
    """Build and save the processor."""
    build(grid).save_pretrained(folder)
