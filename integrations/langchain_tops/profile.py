"""The profile of a model, from which LangChain's agents and middleware read its abilities."""

import json
import os
from pathlib import Path

from langchain_core.language_models import ModelProfile

from tops_engine.mini import mini_path


def model_profile(model: str | None, image_urls: bool, is_remote: bool) -> ModelProfile:
    """Return a model's abilities without loading it; the context length only of models on this machine.

    Args:
        model: Hub id, folder or ``mini``; or what a server calls it, None if that is not known yet.
        image_urls: Whether pictures may be fetched from the web.
        is_remote: Whether it runs behind a server.
    """
    profile = ModelProfile(
        text_inputs=True,
        text_outputs=True,
        image_inputs=True,
        image_url_inputs=image_urls,
        image_tool_message=True,
        pdf_inputs=False,
        audio_inputs=False,
        tool_calling=True,
        tool_choice=True,
        tool_call_streaming=True,
        structured_output=True,
        temperature=True,
    )
    if model is not None:
        profile["name"] = model
    if model is not None and not is_remote and (length := _context_length(model)) is not None:
        profile["max_input_tokens"] = length
    return profile


def _context_length(model: str) -> int | None:
    folder = mini_path() if model == "mini" else Path(os.path.expanduser(model))
    config = folder / "config.json"
    if not config.is_file():
        return None
    try:
        read = json.loads(config.read_text(encoding="utf-8"))
        length = read.get("text_config", read).get("max_position_embeddings")
    except (ValueError, AttributeError):  # what is wrong is said when the model loads
        return None
    return int(length) if length else None
