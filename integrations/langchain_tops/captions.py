"""Sentences in place of pictures that are left out, which a chat model writes once for each picture."""

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig

from langchain_tops.chat_model import ChatTOPSLlava
from langchain_tops.pictures import MAX_REMEMBERED, Picture
from tops_engine.conversation.messages import DEFAULT_QUESTION
from tops_engine.errors import InvalidInput, quote

# A caption is sent at every later step, so it is cut after this many characters.
MAX_LENGTH = 200

#: LangGraph does not stream the tokens of a run with the tag "nostream".
CONFIG = RunnableConfig(tags=["tops-caption", "nostream"])


class Captions:
    """Writes captions and remembers them by the pixels of the pictures.

    Args:
        writer: The chat model that writes them; True is the model that reads the conversation, False writes none.

    Raises:
        InvalidInput: If it is none of these.
    """

    def __init__(self, writer: BaseChatModel | bool) -> None:
        if not isinstance(writer, BaseChatModel | bool):
            raise InvalidInput(f"captions={quote(writer)} is not allowed; give True, False or a chat model.")
        self._writer = writer
        self._known: dict[bytes, str] = {}

    def of(self, picture: Picture, model: Any) -> str | None:
        """Return the caption of a picture, None if captions are off or the picture cannot be opened here."""
        if self._writer is False or picture.look is None:
            return None
        if picture.look.digest not in self._known:
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            self._known[picture.look.digest] = _written(picture, model if self._writer is True else self._writer)
        return self._known[picture.look.digest]


def _written(picture: Picture, model: Any) -> str:
    message = HumanMessage([picture.content, {"type": "text", "text": DEFAULT_QUESTION}])
    options = {"max_tokens": 64} if isinstance(model, ChatTOPSLlava) else {}
    text = " ".join(model.invoke([message], CONFIG, **options).text.split())
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 3]}..."
