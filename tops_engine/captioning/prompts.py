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
    "training caption": (
        "Describe this picture for training an image model: subject, pose, clothes, setting, light and framing, in one "
        "or two plain sentences. Name only what is visible. Begin with the subject, not with 'the image shows'."
    ),
    "booru tags": (
        "Tag this picture in the manner of image boards: lower case, separated by commas, the subject and the number "
        "of persons first, then looks, clothes, pose, setting and style. Write only the tags."
    ),
    "alt text": "Write an alternative text for this picture for people who cannot see it, of at most 125 characters.",
    "image-to-video prompt": (
        "This picture is the first frame of a video of five seconds. Write a prompt for a video model: what moves and "
        "how, what the camera does, and how light and mood change. Write only the prompt, in one paragraph."
    ),
    "JSON": (
        'Describe this picture as one JSON object with the keys "subject", "setting", "colours" (a list), "style", '
        '"text" (what is written in it, or null) and "tags" (a list). Write only the JSON.'
    ),
    "OCR": "Write down all text in this picture, line by line in reading order. Write only the text.",
    "OCR as Markdown": (
        "Write down this page as Markdown: headings, lists and tables as such, in reading order. Write only that."
    ),
}

#: Prompts that make a longer prompt of the user's own, which stands in place of ``{prompt}``.
EXPANSIONS = {
    "expand for an image model": (
        "Expand this idea into a prompt for a text-to-image model: subject, setting, style, light, lens and "
        "composition. Keep what is given; write only the prompt, in one paragraph.\n\n{prompt}"
    ),
    "expand for a video model": (
        "Expand this idea into a prompt for a text-to-video model: subject, setting, what moves in which order, the "
        "movement of the camera, light and style. Keep what is given; write only the prompt, in one paragraph."
        "\n\n{prompt}"
    ),
    "expand an edit": (
        "Rewrite this wish into an instruction for a model that edits this picture: say what changes, where and how, "
        "and what stays as it is. Write only the instruction, in one or two sentences.\n\n{prompt}"
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
