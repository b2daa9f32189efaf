"""TOPS Caption Batch."""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tops_engine.answers.report import Answer
from tops_engine.captioning.asking import Picture, Question
from tops_engine.captioning.in_flight import caption_in_flight
from tops_engine.captioning.prompts import PROMPTS
from tops_engine.captioning.texts import read_text, write_text
from tops_engine.conversation.messages import user_message
from tops_engine.errors import InvalidImage, InvalidInput
from tops_engine.media.formats import is_picture_name
from tops_engine.media.images import open_image
from tops_engine.remote import RemoteAnswer
from tops_engine.settings import Generation, Pruning

from .asking import TEXT_INTERVAL, generation_widgets
from .host import TokenWatch, host, stop_if_interrupted
from .models import NodeModel, TopsModel
from .pictures import to_pictures
from .residency import bring_in
from .servers import ServedModel
from .sockets import MODEL, PRUNING, PRUNING_TIP, STATS, Stats, expect_model, pruning_for
from .widgets import settings_from

CUSTOM = "custom"

#: Lines of the text on the node.
MOST_LINES = 200

#: Seconds that a server which does not answer has to come back.
SERVER_PATIENCE = 30.0


@dataclass
class Item:
    """One picture to caption: from a tensor, or a file that is opened when its turn comes."""

    name: str
    picture: Image.Image | None = None
    path: Path | None = None
    caption: str | None = None
    answer: Answer | RemoteAnswer | None = None

    def open(self) -> Image.Image:
        if self.path is not None:
            return open_image(self.path)
        assert self.picture is not None
        return self.picture


class CaptionBatch:
    """Caption many pictures or a folder."""

    NODE_ID = "TOPSCaptionBatch"
    TITLE = "TOPS Caption Batch"
    CATEGORY = "TOPS"
    DESCRIPTION = (
        "Captions many pictures, several at a time: a batch, a list, or a folder, with .txt files beside the pictures "
        "for training sets. An interrupted run goes on where it stopped."
    )
    SEARCH_ALIASES = ["caption folder", "tagger", "training captions", "dataset", "lora captions", "image to prompt"]
    RETURN_TYPES = ("STRING", "STRING", STATS, "STRING")
    RETURN_NAMES = ("captions", "names", "stats", "report")
    OUTPUT_TOOLTIPS = (
        "One text a picture, as a list: what follows runs once for each.",
        "The pictures' file names (or numbers), in the same order.",
        "Everything measured, for TOPS Token Map.",
        "What was done, and which files could not be read.",
    )
    OUTPUT_IS_LIST = (True, True, False, False)
    INPUT_IS_LIST = True
    FUNCTION = "caption"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        styles = [*PROMPTS, CUSTOM]
        style_tip = "\n".join(f"{name}: {prompt}" for name, prompt in PROMPTS.items())
        return {
            "required": {
                "model": (MODEL, {"tooltip": "From TOPS Load Model."}),
                "style": (styles, {"default": "caption", "tooltip": style_tip}),
                "batch_size": (
                    "INT",
                    {
                        "default": 4,
                        "min": 1,
                        "max": 256,
                        "tooltip": "Pictures asked together; more need more memory. With a server: requests at once.",
                    },
                ),
                **generation_widgets(max_tokens=128),
            },
            "optional": {
                "images": ("IMAGE", {"tooltip": "Pictures: a batch, or a list where their sizes differ."}),
                "pruning": (PRUNING, {"tooltip": PRUNING_TIP}),
                "custom_prompt": (
                    "STRING",
                    {"default": "", "multiline": True, "tooltip": "The question, where the style is custom."},
                ),
                "folder": (
                    "STRING",
                    {"default": "", "tooltip": "A folder of pictures below ComfyUI's input or output folder."},
                ),
                "write_txt": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Write .txt files beside the pictures of the folder.",
                    },
                ),
                "existing_txt": (
                    ["keep", "overwrite"],
                    {
                        "default": "keep",
                        "tooltip": "Where a picture has a .txt file: keep it, or write anew.",
                    },
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, folder: list[str] | None = None, existing_txt: list[str] | None = None, **_: Any) -> Any:
        if not folder or not (folder[0] or "").strip():
            return ""
        digest = hashlib.sha256()
        for item in _folder_items(folder[0]):
            assert item.path is not None
            stat = item.path.stat()
            captioned = existing_txt == ["keep"] and _written(item) is not None
            digest.update(repr((item.name, stat.st_mtime_ns, stat.st_size, captioned)).encode())
        return digest.hexdigest()

    @classmethod
    def VALIDATE_INPUTS(cls, folder: list[str] | str | None = None) -> bool | str:
        name = folder[0] if isinstance(folder, list) else folder
        try:
            if name and name.strip():
                _folder_items(name)
        except InvalidInput as error:
            return str(error)
        return True

    def caption(
        self,
        model: list[NodeModel],
        style: list[str],
        batch_size: list[int],
        max_tokens: list[int],
        temperature: list[float],
        seed: list[int],
        images: Sequence[Any] = (),
        pruning: Sequence[Pruning | None] = (None,),
        custom_prompt: Sequence[str] = ("",),
        folder: Sequence[str] = ("",),
        write_txt: Sequence[bool] = (False,),
        existing_txt: Sequence[str] = ("keep",),
    ) -> dict[str, Any]:
        options = {"max_tokens": max_tokens[0], "temperature": temperature[0], "seed": seed[0]}
        items = _items(images, folder[0])
        if existing_txt[0] == "keep":
            for item in items:
                item.caption = _written(item)
        handle = expect_model(model[0])
        generation = Generation(**settings_from(Generation, options))
        question = Question(_prompt(style[0], custom_prompt[0]), pruning_for(handle, pruning[0]), generation)
        kept = sum(item.caption is not None for item in items)
        run = _Run([item for item in items if item.caption is None], question, batch_size[0], write_txt[0])
        if isinstance(handle, ServedModel):
            run.ask_server(handle)
        else:
            run.ask(handle.local("TOPS Caption Batch"))
        done = [item for item in items if item.caption is not None]
        report = "\n".join(
            [f"{len(done) - kept} captioned, {kept} had a .txt file already, {len(run.failed)} failed.", *run.failed]
        )
        captions = [item.caption for item in done]
        stats = Stats(tuple(item.answer for item in done if item.answer is not None))
        result = (captions, [item.name for item in done], stats, report)
        return {
            "ui": {"text": ["\n".join(f"{item.name}: {item.caption}" for item in done) or report]},
            "result": result,
        }


class _Run:
    """Captioning, with what the node shows meanwhile."""

    def __init__(self, items: list[Item], question: Question, at_once: int, write: bool) -> None:
        self._items, self._question, self._at_once, self._write = items, question, at_once, write
        self._host = host()
        self._lines: list[str] = []
        self.failed: list[str] = []

    def ask(self, model: TopsModel) -> None:
        """Batch after batch."""
        question, length = self._question, self._question.generation.max_tokens
        for start in range(0, len(self._items), self._at_once):
            group = self._items[start : start + self._at_once]
            opened = list(self._opened(group))
            watch = TokenWatch(self._host, len(self._items) * length, start * length, stride=len(group))
            engine = bring_in(model, length, len(group))
            conversations = [[user_message(question.prompt, picture)] for _, picture in opened]
            answers = engine.batch(conversations, question.pruning, question.generation, watch)
            for (item, _), answer in zip(opened, answers, strict=True):
                self._take(item, answer)
            self._show(start + len(group))

    def ask_server(self, model: ServedModel) -> None:
        """Many requests at once; an interruption ends them all."""
        pictures = [
            Picture(str(number), item.path if item.path is not None else item.open())
            for number, item in enumerate(self._items)
        ]
        answered = caption_in_flight(
            model.engine,
            pictures,
            self._question,
            self._at_once,
            SERVER_PATIENCE,
            on_wait=lambda: stop_if_interrupted(self._host),
            say=self._host.show_text,
        )
        shown = 0.0
        for number, one in enumerate(answered, start=1):
            if one.answer is not None:
                self._take(self._items[int(one.name)], one.answer)
            elif isinstance(one.error, InvalidImage):
                self.failed.append(str(one.error))
            elif one.error is not None:
                raise one.error
            if time.monotonic() - shown > TEXT_INTERVAL or number == len(pictures):
                self._show(number)
                shown = time.monotonic()

    def _take(self, item: Item, answer: Answer | RemoteAnswer) -> None:
        item.answer, item.caption = answer, " ".join(answer.text.split())
        self._lines.append(f"{item.name}: {item.caption}")
        if self._write and item.path is not None:
            write_text(item.path, item.caption)

    def _show(self, num_done: int) -> None:
        length = self._question.generation.max_tokens
        self._host.progress(num_done * length, len(self._items) * length)
        self._host.show_text("\n".join(self._lines[-MOST_LINES:]))

    def _opened(self, items: list[Item]) -> Iterator[tuple[Item, Image.Image]]:
        for item in items:
            try:
                yield item, item.open()
            except InvalidImage as error:
                self.failed.append(str(error))


def _prompt(style: str, custom: str) -> str:
    if style != CUSTOM:
        return PROMPTS[style]
    if not custom.strip():
        raise InvalidInput("The style is custom and custom_prompt is empty; write what to ask about each picture.")
    return custom


def _items(images: Sequence[Any], folder: str) -> list[Item]:
    pictures = [picture for image in images for picture in to_pictures(image, "images")]
    items = [Item(str(number), picture=picture) for number, picture in enumerate(pictures)]
    if folder.strip():
        items += _folder_items(folder)
    if not items:
        raise InvalidInput("There is nothing to caption; connect images, or name a folder with pictures.")
    return items


def _folder_items(folder: str) -> list[Item]:
    """The pictures of a folder below input or output.

    Symbolic links inside these folders are followed: whoever set one wanted its pictures to be found.
    """
    folders = host().folders
    for base in (folders.input, folders.output):
        path = Path(os.path.normpath(base / folder.strip()))
        if not path.is_relative_to(base):
            raise InvalidInput(f"The folder {folder!r} is outside of {base}; move it, or a link to it, into there.")
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if is_picture_name(file.name) and file.is_file())
            return [Item(file.name, path=file) for file in files]
    raise InvalidInput(f"There is no folder {folder!r} in {folders.input} or {folders.output}.")


def _written(item: Item) -> str | None:
    """The caption that lies beside the picture."""
    return read_text(item.path) if item.path is not None else None
