"""TOPS Caption Batch."""

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tops_engine.answers.base import BaseAnswer
from tops_engine.captioning.asking import Captioned, Failures, Picture, Question
from tops_engine.captioning.preview import Previewed, draw_sheets
from tops_engine.captioning.texts import check_own_texts, has_text, read_text, write_text
from tops_engine.errors import InvalidImage, InvalidInput, TopsError
from tops_engine.media.folders import left_out_sentence
from tops_engine.settings import CaptionText, Generation, Pruning

from .asking import TEXT_INTERVAL, THINKING, UNLOAD, generation_widgets, seed_change
from .comfyui_host import host, refusal
from .models import NodeModel, freed_if
from .notes import notes
from .picture_folders import FOLDERS, named_pictures
from .pictures import save_temporary, to_image, to_pictures
from .presets import preset_prompt, styles
from .sockets import MODEL, PRUNING, PRUNING_TIP, STATS, Stats, expect_model, pruning_for
from .widgets import settings_from, shown_for, widget

CUSTOM = "custom"

#: Lines of the text on the node.
MOST_LINES = 200

#: Pictures of the preview, and of each of its sheets.
MOST_PREVIEWED, SHEET_ROWS = 32, 8

TEXT_FIELDS = CaptionText.model_fields


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


class CaptionBatch:
    """Caption many pictures or a folder."""

    NODE_ID = "TOPSCaptionBatch"
    TITLE = "TOPS Caption Batch (folder, tags)"
    CATEGORY = "TOPS"
    DESCRIPTION = (
        "Captions many pictures, several at a time: a batch, a list, or a folder, with .txt files beside the pictures "
        "for training sets. The next run continues an interrupted one."
    )
    SEARCH_ALIASES = [
        "caption folder", "tagger", "training captions", "dataset", "lora captions", "image to prompt", "vlm", "llava",
        "describe images", "batch", "image to text", "joycaption",
    ]  # fmt: skip
    RETURN_TYPES = ("STRING", "STRING", STATS, "STRING", "STRING", "IMAGE")
    RETURN_NAMES = ("captions", "names", "stats", "report", "reasoning", "preview")
    OUTPUT_TOOLTIPS = (
        "One text a picture, as a list: what follows runs once for each.",
        "The pictures' file names (or numbers), in the same order.",
        "Everything measured, for TOPS Token Map.",
        "What was done, and which files could not be read.",
        "What a thinking model wrote before each caption, in the same order; empty for other models.",
        f"The first {MOST_PREVIEWED} pictures, each beside its caption: sheets of {SHEET_ROWS}.",
    )
    OUTPUT_IS_LIST = (True, True, False, False, True, False)
    INPUT_IS_LIST = True
    FUNCTION = "caption"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        known_styles, style_options = styles()
        return {
            "required": {
                "model": (MODEL, {"tooltip": "From TOPS Load Model."}),
                "style": ([*known_styles, CUSTOM], style_options),
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
                "custom_prompt": shown_for(
                    (
                        "STRING",
                        {"default": "", "multiline": True, "tooltip": "The question, where the style is custom."},
                    ),
                    style=[CUSTOM],
                ),
                "folder": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "A folder of pictures below ComfyUI's input or output folder, with its subfolders; "
                        f"or the path of one that the environment variable {FOLDERS} allows.",
                    },
                ),
                "write_txt": widget(TEXT_FIELDS["write_txt"]),
                "existing_txt": widget(TEXT_FIELDS["existing_txt"]),
                "thinking": THINKING,
                **{name: widget(TEXT_FIELDS[name]) for name in ("trigger", "prefix", "suffix", "tag_order")},
                "dry_run": ("BOOLEAN", {"default": False, "tooltip": "Only report what would be captioned."}),
                "unload": UNLOAD,
            },
        }

    @classmethod
    def IS_CHANGED(
        cls,
        folder: list[str] | None = None,
        existing_txt: list[str] | None = None,
        seed: list[int] | None = None,
        temperature: list[float] | None = None,
        **_: Any,
    ) -> Any:
        change = seed_change((seed or [0])[0], (temperature or [0.0])[0])
        if change != change:
            return change
        if not folder or not (folder[0] or "").strip():
            return ""
        digest = hashlib.sha256()
        for name, path in named_pictures(folder[0]):
            stat = path.stat()
            captioned = existing_txt == ["keep"] and has_text(path)
            digest.update(repr((name, stat.st_mtime_ns, stat.st_size, captioned)).encode())
        return digest.hexdigest()

    @classmethod
    def VALIDATE_INPUTS(cls, folder: list[str] | str | None = None) -> bool | str:
        name = folder[0] if isinstance(folder, list) else folder
        try:
            if name and name.strip():
                named_pictures(name)
        except InvalidInput as error:
            return refusal(str(error))
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
        thinking: Sequence[str | None] = ("",),
        dry_run: Sequence[bool] = (False,),
        unload: Sequence[bool] = (False,),
        **wording: Sequence[str],
    ) -> dict[str, Any]:
        options = {
            "max_tokens": max_tokens[0],
            "temperature": temperature[0],
            "seed": seed[0],
            "thinking": thinking[0],
        }
        text = CaptionText(
            write_txt=write_txt[0],
            existing_txt=existing_txt[0],
            **{name: value[0] for name, value in wording.items()},
        )
        left_out: Counter[str] = Counter()
        items = _items(images, folder[0], left_out)
        keep = text.existing_txt == "keep"
        if keep or text.write_txt:
            check_own_texts((item.path for item in items if item.path is not None), only_existing=not text.write_txt)
        if len(custom_prompt) > 1 and style[0] == CUSTOM:
            raise InvalidInput(
                f"custom_prompt got {len(custom_prompt)} texts, and this node asks one question about all pictures; "
                "for a list of questions use TOPS Ask, which runs once for each."
            )
        handle = expect_model(model[0])
        generation = Generation(**settings_from(Generation, options))
        question = Question(_prompt(style[0], custom_prompt[0]), pruning_for(handle, pruning[0]), generation)
        run = _Run(items, question, batch_size[0], text)
        if keep:
            run.keep_texts()
        if not dry_run[0]:
            with freed_if(unload[0], handle):
                run.caption(handle)
        done = [item for item in items if item.caption is not None]
        texts = "\n".join(f"{item.name}: {item.caption}" for item in done)
        report = run.plan(left_out) if dry_run[0] else run.report(left_out)
        stats = Stats(tuple(item.answer for item in done if item.answer is not None))
        reasoning = ["" if item.answer is None else item.answer.reasoning for item in done]
        rows = [Previewed(item.name, item.source, item.caption or "") for item in items[:MOST_PREVIEWED]]
        sheets = draw_sheets(rows, SHEET_ROWS)
        captions, names = [item.caption for item in done], [item.name for item in done]
        shown = report if dry_run[0] else texts or report
        loose = [item.source for item in items if isinstance(item.source, Image.Image)]
        said = [] if dry_run[0] else notes(handle, loose, pruning[0])
        return {
            "ui": {
                "text": [shown],
                "notes": said,
                "images": [save_temporary(sheet, "tops_captions") for sheet in sheets],
            },
            "result": (captions, names, stats, report, reasoning, to_image(sheets)),
        }


class _Run:
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


def _prompt(style: str, custom: str | None) -> str:
    if style != CUSTOM:
        return str(preset_prompt(style, None))
    if not custom or not custom.strip():
        raise InvalidInput("The style is custom and custom_prompt is empty; write what to ask about each picture.")
    return custom


def _items(images: Sequence[Any], folder: str, left_out: Counter[str]) -> list[Item]:
    pictures = [picture for image in images for picture in to_pictures(image, "images")]
    items = [Item(str(number), picture) for number, picture in enumerate(pictures)]
    if folder.strip():
        items += [Item(name, path) for name, path in named_pictures(folder, left_out)]
    if not items:
        raise InvalidInput("There is nothing to caption; connect images, or name a folder with pictures.")
    return items
