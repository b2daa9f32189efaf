"""The profile of a model, from which LangChain's agents and middleware read its abilities."""

import json
import os
from pathlib import Path

from langchain_core.language_models import ModelProfile

from tops_engine.conversation.thinking import writes_marks
from tops_engine.families import FAMILIES
from tops_engine.mini import mini_path


def model_profile(model: str | None, image_urls: bool, is_remote: bool) -> ModelProfile:
    """Return a model's abilities without loading it.

    The context length, videos and reasoning are known only of models on this machine. A server's calls come with its
    answer, and it takes no videos.

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
        image_outputs=False,
        pdf_inputs=False,
        pdf_tool_message=False,
        audio_inputs=False,
        audio_outputs=False,
        video_inputs=False,
        video_outputs=False,
        tool_calling=True,
        tool_choice=True,
        tool_call_streaming=not is_remote,
        structured_output=True,
        temperature=True,
        attachment=True,
        open_weights=True,
    )
    if model is not None:
        profile["name"] = model
    if model is not None and not is_remote:
        profile.update(_of_checkpoint(mini_path() if model == "mini" else Path(os.path.expanduser(model))))
    return profile


def _of_checkpoint(folder: Path) -> ModelProfile:
    """Return what the files of a checkpoint say; nothing if it is not on this machine or cannot be read."""
    found = ModelProfile()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        length = config.get("text_config", config).get("max_position_embeddings")
        family = FAMILIES.get(config.get("model_type"))
    except (OSError, ValueError, AttributeError):  # what is wrong is said when the model loads
        return found
    if length:
        # Question and answer share the context.
        found["max_input_tokens"] = found["max_output_tokens"] = int(length)
    found["video_inputs"] = family is not None and family.takes_videos
    template = _chat_template(folder)
    if template is not None:
        found["reasoning_output"] = writes_marks(template)
    return found


def _chat_template(folder: Path) -> str | None:
    """Return the chat template of a checkpoint, None if it has none in the usual files."""
    try:
        if (folder / "chat_template.jinja").is_file():
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        for name in ("chat_template.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                template = json.loads((folder / name).read_text(encoding="utf-8")).get("chat_template")
                if isinstance(template, str):
                    return template
    except (OSError, ValueError, AttributeError):
        return None
    return None
