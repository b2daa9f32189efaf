"""Options of the text that is kept of a caption: its trigger word and tags, and the file beside the picture."""

import re
from typing import Literal

from pydantic import Field

from tops_engine.settings.base import Settings

#: Signs that follow a text without a space.
CLOSING = (",", ".", ";", ":", "!", "?")


class CaptionText(Settings):
    """What becomes of a model's caption: words around it, the order of its tags, and the file that it is written to."""

    trigger: str = Field(
        default="",
        description="A word that every caption begins with, such as the trigger word of a LoRA. A caption that "
        "contains it is left as it is; in tags it moves to the front.",
    )
    prefix: str = Field(default="", description="Text before every caption, and before the trigger word.")
    suffix: str = Field(default="", description="Text behind every caption.")
    tag_order: Literal["unchanged", "written", "alphabetical"] = Field(
        default="unchanged",
        description="Tags separated by commas, without repetitions and a full stop: as the model wrote them, or in "
        "alphabetical order. unchanged: the caption is a text, not tags.",
    )
    write_txt: bool = Field(default=False, description="Write a .txt file beside each picture of the folder.")
    existing_txt: Literal["keep", "overwrite"] = Field(
        default="keep", description="If a picture has a .txt file: keep it, or write a new one."
    )

    def wording(self) -> dict[str, str]:
        """Return the options that change the text and are set."""
        return self.model_dump(include={"trigger", "prefix", "suffix", "tag_order"}, exclude_defaults=True)

    def apply(self, caption: str) -> str:
        """Return the text that is kept of a caption, on one line."""
        trigger, body = self.trigger.strip(), caption.strip()
        if self.tag_order != "unchanged":
            tags = [tag for tag in _tags(body) if tag.casefold() != trigger.casefold()]
            body = ", ".join(sorted(tags, key=str.casefold) if self.tag_order == "alphabetical" else tags)
        if trigger and not _contains(body, trigger):
            body = ", ".join(part for part in (trigger, body) if part)
        parts = [part for part in (self.prefix.strip(), body, self.suffix.strip()) if part]
        text = ""
        for part in parts:
            text += part if not text or part.startswith(CLOSING) else f" {part}"
        return " ".join(text.split())


def _tags(text: str) -> list[str]:
    """Return the tags of a text in their order, each once, whatever its case."""
    found: dict[str, str] = {}
    for part in re.split(r"[,\n]", text):
        tag = part.strip().removesuffix(".").strip()
        if tag:
            found.setdefault(tag.casefold(), tag)
    return list(found.values())


def _contains(text: str, word: str) -> bool:
    """Return whether the text has the word, not only as a part of a longer one."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None
