"""Write a small random CLIP model in the published layout."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from tests.support.checkpoints import small_tokenizer, vision_config


def save_clip(folder: Path, vision: CLIPVisionConfig | None = None) -> Path:
    """Save a CLIP like openai/clip-vit-large-patch14-336 with the small LLaVA checkpoints' vision tower or another."""
    tokenizer = small_tokenizer()
    tokenizer.model_max_length = 77
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    torch.manual_seed(1)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=(vision or vision_config()).to_dict(), projection_dim=24
    )
    CLIPModel(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
