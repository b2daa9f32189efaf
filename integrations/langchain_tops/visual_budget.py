"""Keep the pictures of a conversation within a number of visual tokens."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableBinding

from langchain_tops.budgets import Decay, Demand, allot, weights_by_age
from langchain_tops.captions import Captions
from langchain_tops.counting import Counting, counting_of
from langchain_tops.duplicates import Copy, copies
from langchain_tops.pictures import Album, Picture
from langchain_tops.providers import CountTokens
from tops_engine.errors import InvalidInput, quote

UNKNOWN = (
    "It is not documented how this model counts pictures, so they are sent unchanged; give formula=, a function of "
    "width and height that returns tokens."
)

log = logging.getLogger(__name__)


class Fitted(NamedTuple):
    """The messages to send, and what was done to their pictures."""

    messages: list[Any]
    report: dict[str, Any]


class Sent(NamedTuple):
    """What is sent in place of one picture.

    Attributes:
        block: The content block; None for the picture as it is.
        before, after: Its tokens without and with the budget; None if they are not known.
        how: One of "in full", "reduced", "as text", "as caption", "repeated", "nearly repeated", "missing" and
            "unchanged".
    """

    block: dict[str, Any] | None
    before: int | None
    after: int | None
    how: str


class VisualBudget:
    """Keeps the pictures of a conversation within a number of visual tokens, for any chat model.

    The newest pictures, those of the question, those that the question names ("picture 3", the name of the file or of
    the block) and those with a budget of their own (``keep``, as a tool can set) are served first. The others share the
    rest by age. As long as everything fits, nothing changes. A picture of which too little would remain is replaced by
    a line of text, on request with a caption that a model wrote once. Of pictures that show the same, pixel for pixel
    or nearly (:data:`langchain_tops.duplicates.NEAR`), the newest is sent, and the others are replaced by a line of
    text.

    With :class:`ChatTOPSLlava` on this machine, a smaller picture is one with a budget of its own (``keep``), in
    layer-average visual tokens. So it is with ``base_url``, if the model has a ``keep`` of its own, which needs a
    server that takes budgets from requests. For other models it is resized. If no formula of a model is documented,
    pictures are sent unchanged and the report says so. Videos and pictures at web addresses are sent unchanged, too.

    Args:
        max_visual_tokens: A number of tokens, or a share of the model's context (0.5).
        decay: How pictures count that are older: "half" (half of the next newer), "linear", or a function of age (0 is
            the newest message with pictures), tool and relevance (0.0 to 1.0: share of the words of the question that
            stand beside the picture) that returns a weight from 0.0 to 1.0.
        min_picture_tokens: A picture of which fewer tokens would remain is replaced by a line of text.
        formula: From width and height in pixels to the tokens of a picture, for a model whose counts are not known
            here, or are known wrongly.
        captions: True puts a caption in the line of text for a picture that is left out: the model itself writes it,
            once. A chat model writes it in its place.

    Raises:
        InvalidInput: If an argument is not allowed.
    """

    def __init__(
        self,
        max_visual_tokens: float,
        decay: Decay = "half",
        min_picture_tokens: int = 16,
        formula: CountTokens | None = None,
        captions: BaseChatModel | bool = False,
    ) -> None:
        self.max_visual_tokens = _read_max_tokens(max_visual_tokens)
        if not callable(decay) and decay not in ("half", "linear"):
            raise InvalidInput(f"decay={quote(decay)} is not allowed; give 'half', 'linear' or a function.")
        if isinstance(min_picture_tokens, bool) or not isinstance(min_picture_tokens, int) or min_picture_tokens < 2:
            given = quote(min_picture_tokens)
            raise InvalidInput(f"min_picture_tokens={given} is not allowed; give a whole number from 2.")
        if formula is not None and not callable(formula):
            raise InvalidInput("formula is not a function; give one of width and height that returns tokens.")
        self.decay, self.min_picture_tokens, self.formula = decay, min_picture_tokens, formula
        self._album, self._captions, self._warned = Album(), Captions(captions), False

    def fit(
        self,
        messages: Sequence[BaseMessage],
        model: BaseChatModel | Runnable[Any, Any],
        options: Mapping[str, Any] | None = None,
    ) -> Fitted:
        """Return the messages with pictures that fit, and a report; the given messages stay as they are.

        Args:
            messages: The conversation.
            model: The chat model that will read it, also with bound tools.
            options: The options of the call, such as ``keep``.

        Raises:
            InvalidInput: If the budget is larger than the context of the model, if a share of an unknown context is
                asked for, if a picture has a budget that is not allowed, or if the budget of the model is a limit of
                cost (``flops``, ``kv_mb``, ``first_token_ms``).
        """
        bare, options = _bare(model, options or {})
        limit = self._limit(bare)
        pictures = self._album.find(messages)
        counting = counting_of(bare, self.formula, options) if pictures else None
        sent = self._sent(pictures, counting, limit, bare)
        report: dict[str, Any] = {
            "max_visual_tokens": limit,
            "before": sum(each.before for each in sent if each.before is not None),
            "after": sum(each.after for each in sent if each.after is not None),
            "pictures": [
                {"number": picture.number, "before": each.before, "after": each.after, "sent": each.how}
                for picture, each in zip(pictures, sent, strict=True)
            ],
        }
        if counting is not None:
            report["counted_by"] = counting.source
        elif pictures:
            report |= {"before": None, "after": None, "note": UNKNOWN}
            if not self._warned:
                log.warning("%s", UNKNOWN)
            self._warned = True
        return Fitted(_with_blocks(messages, pictures, [each.block for each in sent]), report)

    def _limit(self, model: Any) -> int:
        """Return the number of tokens for pictures."""
        context = (getattr(model, "profile", None) or {}).get("max_input_tokens")
        if isinstance(self.max_visual_tokens, float):
            if context is None:
                raise InvalidInput(
                    f"max_visual_tokens={self.max_visual_tokens} is a share of the context, and the profile of the "
                    "model does not say how long that is; give a number of tokens."
                )
            return int(self.max_visual_tokens * context)
        if context is not None and self.max_visual_tokens > context:
            raise InvalidInput(
                f"max_visual_tokens={self.max_visual_tokens} is more than the context of the model, {context} tokens; "
                "give less, or a share such as 0.5."
            )
        return self.max_visual_tokens

    def _sent(self, pictures: Sequence[Picture], counting: Counting | None, limit: int, model: Any) -> list[Sent]:
        """Return what is sent in place of each picture."""
        repeated = copies(pictures)
        demands = self._demands(pictures, counting, repeated)
        counted = [number for number in demands if number not in repeated]
        tokens = dict(zip(counted, allot([demands[number] for number in counted], limit), strict=True))
        sent = []
        for picture in pictures:
            number = picture.number
            before = demands[number].full if number in demands else None
            if picture.is_missing and picture.age > 0:
                sent.append(Sent(_text(picture, "file removed"), None, 0, "missing"))
            elif (copy := repeated.get(number)) is not None:
                what = "same as" if copy.is_exact else "nearly the same as"
                line = _text(picture, f"{what} picture {copy.number}")
                sent.append(Sent(line, before, 0, "repeated" if copy.is_exact else "nearly repeated"))
            elif number not in demands or counting is None:
                sent.append(Sent(None, None, None, "unchanged"))
            elif tokens[number] == 0:
                sent.append(self._left_out(picture, before, model))
            else:
                block, after = counting.send(picture, demands[number], tokens[number])
                sent.append(Sent(block, before, after, "in full" if tokens[number] == before else "reduced"))
        return sent

    def _left_out(self, picture: Picture, before: int | None, model: Any) -> Sent:
        caption = self._captions.of(picture, model)
        if caption is None:
            return Sent(_text(picture, "left out"), before, 0, "as text")
        return Sent(_text(picture, f"left out, it shows: {caption}"), before, 0, "as caption")

    def _demands(
        self, pictures: Sequence[Picture], counting: Counting | None, repeated: Mapping[int, Copy]
    ) -> dict[int, Demand]:
        """Return what each picture asks for that can be counted."""
        if counting is None or not pictures:
            return {}
        protected = {
            repeated[picture.number].number if picture.number in repeated else picture.number
            for picture in pictures
            if picture.age == 0 or picture.is_named or picture.keep is not None
        }
        ages, tools, relevances = zip(*((each.age, each.tool, each.relevance) for each in pictures), strict=True)
        weights = weights_by_age(ages, tools, relevances, self.decay)
        demands = {}
        for picture, weight in zip(pictures, weights, strict=True):
            is_protected = picture.number in protected
            # Among protected pictures the newest come first, whatever the function of the user says.
            weight = 0.5**picture.age if is_protected else weight
            demand = counting.demand(picture, self.min_picture_tokens, weight, is_protected)
            if demand is not None:
                demands[picture.number] = demand
        return demands


def _read_max_tokens(value: object) -> int | float:
    rule = "give a whole number of tokens, or a share of the context above 0.0 and up to 1.0"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(f"max_visual_tokens={quote(value)} is not allowed; {rule}.")
    if value < 1 if isinstance(value, int) else not 0 < value <= 1:
        raise InvalidInput(f"max_visual_tokens={quote(value)} is not allowed; {rule}.")
    return value


def _bare(model: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the chat model without what is bound to it, and the options of a call with those that are."""
    options = dict(options)
    while isinstance(model, RunnableBinding):
        model, options = model.bound, {**model.kwargs, **options}
    return model, options


def _text(picture: Picture, what: str) -> dict[str, Any]:
    """Return the line of text that stands in place of a picture; it is short, because it is sent again and again."""
    maker = f" from {picture.tool}" if picture.tool else ""
    return {"type": "text", "text": f"[Picture {picture.number}{maker}: {what}]"}


def _with_blocks(
    messages: Sequence[BaseMessage], pictures: Sequence[Picture], blocks: Sequence[dict[str, Any] | None]
) -> list[BaseMessage]:
    """Return copies of the messages in which the blocks of pictures are exchanged."""
    contents: dict[int, list[Any]] = {}
    for picture, block in zip(pictures, blocks, strict=True):
        if block is not None:
            content = contents.setdefault(picture.message, list(messages[picture.message].content))
            content[picture.block] = block
    return [
        message.model_copy(update={"content": contents[number]}) if number in contents else message
        for number, message in enumerate(messages)
    ]
