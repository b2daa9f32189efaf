"""Prompts that ask for a caption."""

from tops_engine.errors import InvalidInput, listed, quote

PROMPTS = {
    "caption": "Describe this picture in one sentence.",
    "tags": "List what is in this picture as short tags, separated by commas.",
    "detailed": "Describe this picture in detail: subjects, setting, colours, light, composition and style.",
    "text-to-image prompt": (
        "Write a prompt for a text-to-image model that would give this picture: subject, setting, style, light and "
        "composition as short phrases, separated by commas. Write only the prompt."
    ),
}


def prompt_of(style: str, custom: str | None = None) -> str:
    """Return the custom prompt if there is one, or the prompt of a style.

    Raises
    ------
    InvalidInput
        If the prompt is empty, or there is no such style.
    """
    if custom is not None:
        if not custom.strip():
            raise InvalidInput("The prompt is empty; write what to ask about each picture.")
        return custom
    if style not in PROMPTS:
        raise InvalidInput(f"There is no style {quote(style)}; choose one of {listed(PROMPTS)}.")
    return PROMPTS[style]
