"""TOPS Caption Batch."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from PIL import Image

from tops_engine.captioning.asking import Question
from tops_engine.captioning.preview import Previewed, draw_sheets
from tops_engine.captioning.texts import check_own_texts, has_text
from tops_engine.errors import InvalidInput
from tops_engine.settings import CaptionText, Generation, Pruning

from .asking import THINKING, UNLOAD, generation_widgets, seed_change
from .caption_run import CaptionRun, Item
from .comfyui_host import refusal
from .models import NodeModel, freed_if
from .notes import notes
from .picture_folders import FOLDERS, named_pictures
from .pictures import save_temporary, to_image, to_pictures
from .presets import preset_prompt, styles
from .sockets import MODEL, PRUNING, PRUNING_TIP, STATS, Stats, expect_model, pruning_for
from .widgets import settings_from, shown_for, widget

CUSTOM = "custom"

#: Pictures of the preview, and of each of its sheets.
MOST_PREVIEWED, SHEET_ROWS = 32, 8

TEXT_FIELDS = CaptionText.model_fields


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
        prompt = _prompt(style[0], custom_prompt)
        handle = expect_model(model[0])
        generation = Generation(**settings_from(Generation, options))
        question = Question(prompt, pruning_for(handle, pruning[0]), generation)
        run = CaptionRun(items, question, batch_size[0], text)
        if keep:
            run.keep_texts()
        if not dry_run[0]:
            with freed_if(unload[0], handle):
                run.caption(handle)
        report = run.plan(left_out) if dry_run[0] else run.report(left_out)
        loose = [item.source for item in items if isinstance(item.source, Image.Image)]
        said = [] if dry_run[0] else notes(handle, loose, pruning[0])
        return _shown(items, report, said, only_report=dry_run[0])


def _shown(items: Sequence[Item], report: str, said: Sequence[str], only_report: bool) -> dict[str, Any]:
    """Return the outputs of the node, and what it shows."""
    done = [item for item in items if item.caption is not None]
    texts = "\n".join(f"{item.name}: {item.caption}" for item in done)
    stats = Stats(tuple(item.answer for item in done if item.answer is not None))
    reasoning = ["" if item.answer is None else item.answer.reasoning for item in done]
    rows = [Previewed(item.name, item.source, item.caption or "") for item in items[:MOST_PREVIEWED]]
    sheets = draw_sheets(rows, SHEET_ROWS)
    captions, names = [item.caption for item in done], [item.name for item in done]
    return {
        "ui": {
            "text": [report if only_report else texts or report],
            "notes": said,
            "images": [save_temporary(sheet, "tops_captions") for sheet in sheets],
        },
        "result": (captions, names, stats, report, reasoning, to_image(sheets)),
    }


def _prompt(style: str, customs: Sequence[str | None]) -> str:
    if style != CUSTOM:
        return str(preset_prompt(style, None))
    if len(customs) > 1:
        raise InvalidInput(
            f"custom_prompt got {len(customs)} texts, and this node asks one question about all pictures; "
            "for a list of questions use TOPS Ask, which runs once for each."
        )
    custom = customs[0] if customs else None
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
