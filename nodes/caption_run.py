"""One run of TOPS Caption Batch: the pictures that have no caption, and what the node shows meanwhile."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tops_engine.answers.base import BaseAnswer
from tops_engine.captioning.asking import Captioned, Failures, Picture, Question
from tops_engine.captioning.texts import read_text, write_text
from tops_engine.errors import InvalidImage, InvalidInput, TopsError
from tops_engine.media.folders import left_out_sentence
from tops_engine.settings import CaptionText

from .asking import TEXT_INTERVAL
from .comfyui_host import host
from .models import NodeModel

#: Lines of the text on the node.
MOST_LINES = 200


@dataclass
class Item:
    """One picture to caption: a tensor's, or a file that is opened when its turn comes."""

    name: str
    source: Image.Image | Path
    caption: str | None = None
    answer: BaseAnswer | None = None

    @property
    def path(self) -> Path | None:
        """The file, if it is one."""
        return self.source if isinstance(self.source, Path) else None


class CaptionRun:
    """Captioning, and what the node shows meanwhile."""

    def __init__(self, items: list[Item], question: Question, at_once: int, text: CaptionText) -> None:
        self._items = {str(number): item for number, item in enumerate(items)}
        self._question, self._at_once, self._text = question, at_once, text
        self._host = host()
        self._lines: list[str] = []
        self._errors: list[str] = []
        self._failures = Failures()
        self._num_kept = 0
        self._shown = 0.0

    def keep_texts(self) -> None:
        """Take the captions that lie beside the pictures; a picture whose text cannot be read fails alone."""
        for name, item in list(self._items.items()):
            try:
                item.caption = read_text(item.path) if item.path is not None else None
            except InvalidInput as error:
                self._errors.append(str(error))
                del self._items[name]
            else:
                self._num_kept += item.caption is not None
        self._items = {name: item for name, item in self._items.items() if item.caption is None}

    def caption(self, model: NodeModel) -> None:
        """Ask about all pictures that have no caption.

        Raises
        ------
        TopsError
            If none of them gets one although some can be opened, or the model cannot be asked at all.
        """
        pictures = [Picture(name, item.source) for name, item in self._items.items()]
        refusal: TopsError | None = None
        for one in model.caption(pictures, self._question, self._at_once, self._host) if pictures else ():
            if one.answer is not None:
                self._take(self._items[one.name], one)
            elif one.error is not None:
                refusal = refusal or (None if isinstance(one.error, InvalidImage) else one.error)
                self._errors.append(_sentence(self._items[one.name].name, one.error))
            self._failures.count(one)
            self._show()
        if refusal is not None and not self._failures.num_captioned:
            raise refusal

    def report(self, left_out: Counter[str]) -> str:
        """Return what was done, and what failed."""
        counts = (
            f"{self._failures.num_captioned} captioned, {self._num_kept} had a .txt file already, "
            f"{len(self._errors)} failed. {left_out_sentence(left_out)}"
        )
        return "\n".join([counts.rstrip(), *self._errors])

    def plan(self, left_out: Counter[str]) -> str:
        """Return what a run would do."""
        counts = f"Would caption {len(self._items)} pictures; {self._num_kept} have a .txt file that is kept."
        becomes = f"Each caption becomes: {self._text.apply('...')}" if self._text.wording() else ""
        names = [item.name for item in self._items.values()]
        lines = [f"{counts} {left_out_sentence(left_out)}".rstrip(), becomes, *names[:MOST_LINES], *self._errors]
        return "\n".join(line for line in lines if line)

    @property
    def _num_done(self) -> int:
        return self._failures.num_captioned + self._failures.num_failed

    def _take(self, item: Item, one: Captioned) -> None:
        item.answer, item.caption = one.answer, self._text.apply(one.caption)
        self._lines.append(f"{item.name}: {item.caption}")
        if self._text.write_txt and item.path is not None:
            try:
                write_text(item.path, item.caption)
            except InvalidInput as error:
                self._errors.append(str(error))

    def _show(self) -> None:
        length, is_last = self._question.generation.max_tokens, self._num_done == len(self._items)
        self._host.progress(self._num_done * length, len(self._items) * length)
        if is_last or time.monotonic() - self._shown > TEXT_INTERVAL:
            # The newest first: the node shows the beginning of a long text.
            self._host.show_text("\n".join(reversed(self._lines[-MOST_LINES:])))
            self._shown = time.monotonic()


def _sentence(name: str, error: TopsError) -> str:
    """Return the reason why a picture failed, with its name."""
    return str(error) if name in str(error) else f"{name}: {error}"
