"""TOPS Compare."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tops_engine.conversation.messages import user_message
from tops_engine.errors import InvalidInput
from tops_engine.media.colours import BAR, INK, PAPER
from tops_engine.media.token_map import MARGIN
from tops_engine.settings import Generation, Pruning
from tops_engine.settings.labels import read_prunings
from tops_engine.settings.method_options import file_options

from .asking import FIELDS
from .comfyui_host import TokenWatch, host, refusal
from .models import NodeModel
from .pictures import all_pictures, growing_pictures, to_image
from .sockets import MODEL, STATS, Stats, expect_local_model
from .widgets import widget

if TYPE_CHECKING:
    from tops_engine.comparison.one_picture import FailedRow, Row

# Pixels of the drawing: of a method's name, a column of bars, a bar's value, the header, a line.
LABEL, COLUMN, VALUE, HEAD, LINE = 300, 360, 90, 44, 30


class Compare:
    """Compare methods and budgets on one question."""

    NODE_ID = "TOPSCompare"
    TITLE = "TOPS Compare (methods side by side)"
    CATEGORY = "TOPS"
    DESCRIPTION = "The same question with several methods and budgets: answers, tokens, times and maps side by side."
    SEARCH_ALIASES = ["benchmark", "speed test", "side by side", "fastv", "divprune"]
    RETURN_TYPES = ("STRING", "IMAGE", "IMAGE", STATS, "IMAGE")
    RETURN_NAMES = ("table", "token_maps", "plot", "stats", "card")
    OUTPUT_TOOLTIPS = (
        "Answers, times, FLOPs and fidelity to the unpruned model, a row for each pruning.",
        "What each pruning kept, beside the picture.",
        "Time and FLOPs of each pruning as bars.",
        "Everything measured: the unpruned answer, then one for each pruning.",
        "One picture to share: before and after the pruning with the fewest tokens and the unpruned answer.",
    )
    FUNCTION = "compare"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        methods = "Methods, separated by commas, with options if wanted: tops,divprune,tops:lambda=2.0:raters=last."
        return {
            "required": {
                "model": (MODEL, {"tooltip": "From TOPS Load Model."}),
                "image": ("IMAGE", {"tooltip": "The picture; a batch is several pictures of one question."}),
                "prompt": (
                    "STRING",
                    {"default": "What is shown in this picture?", "multiline": True, "tooltip": "The question."},
                ),
                "methods": ("STRING", {"default": "tops,divprune,scope", "tooltip": methods}),
                "keep": (
                    "STRING",
                    {"default": "0.222", "tooltip": "Budgets, separated by commas, such as 0.222,64."},
                ),
                "repeats": (
                    "INT",
                    {"default": 3, "min": 1, "max": 100, "tooltip": "Timed runs of each; the median shows."},
                ),
                "max_tokens": widget(FIELDS["max_tokens"], default=64),
            },
            "optional": growing_pictures(first=2),
        }

    @classmethod
    def VALIDATE_INPUTS(cls, methods: str | None, keep: str | None, images: object = None) -> bool | str:
        # ComfyUI gives every check the groups of inputs.
        if methods is None or keep is None:
            return True
        try:
            _prunings(methods, keep)
        except ValueError as error:
            return refusal(str(error))
        return True

    def compare(
        self,
        model: NodeModel,
        image: Tensor,
        prompt: str,
        methods: str,
        keep: str,
        repeats: int,
        max_tokens: int,
        images: dict[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        from tops_engine.comparison.card import draw_card
        from tops_engine.comparison.maps import draw_grid
        from tops_engine.comparison.one_picture import Row, compare_prunings

        messages = [user_message(prompt, *all_pictures({"image": image}, images))]
        prunings = _prunings(methods, keep)
        local = expect_local_model(model, "TOPS Compare")
        engine = local.ready(max_tokens)
        running = host()
        watch = TokenWatch(running, (len(prunings) + 1) * repeats * max_tokens)
        rows = compare_prunings(engine, messages, prunings, Generation(max_tokens=max_tokens), repeats, watch)
        table = _as_text(rows, f"{prompt}  ({local.spec.model} on {engine.device})")
        running.show_text(table)
        num_layers = engine.family.decoder.num_layers
        grid = draw_grid(rows, prompt, num_layers)
        ran = [row for row in rows if isinstance(row, Row)]
        is_pruned = any(row.answer.usage.kept_fraction < 1 for row in ran)
        card = draw_card(rows, prompt, num_layers, local.spec.model) if is_pruned else grid
        stats = Stats(tuple(row.answer for row in ran))
        return {
            "ui": {"text": [table]},
            "result": (table, to_image([grid]), to_image([draw_bars(ran)]), stats, to_image([card])),
        }


def _prunings(methods: str, keep: str) -> list[Pruning]:
    """Return every method at every budget; options that name files are refused. The unpruned model needs no mention."""
    for name in file_options():
        if f"{name}=" in methods:
            raise InvalidInput(f"A comparison takes no {name} files; methods are named with plain options only.")
    return read_prunings(methods, keep)


def _as_text(rows: Sequence["Row | FailedRow"], title: str) -> str:
    from tops_engine.comparison.one_picture import comparison_table, parts_table

    return f"{comparison_table(rows, title)}\n\n{parts_table(rows)}"


def draw_bars(rows: Sequence["Row"]) -> Image.Image:
    """Draw the milliseconds and GFLOPs of each pruning as bars, without a plotting library."""
    from tops_engine.evaluation.prunings import pruning_name

    figures = [
        ("ms", [1e3 * row.seconds["total"] for row in rows]),
        ("GFLOPs", [row.answer.flops.total / 1e9 for row in rows]),
    ]
    font, small = ImageFont.load_default(16), ImageFont.load_default(14)
    canvas = Image.new("RGB", (LABEL + len(figures) * COLUMN + MARGIN, HEAD + len(rows) * LINE + MARGIN), PAPER)
    pen = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        pen.text((MARGIN, HEAD + number * LINE + 4), pruning_name(row.pruning), INK, small)
    for column, (unit, values) in enumerate(figures):
        left = LABEL + column * COLUMN
        pen.text((left, MARGIN), f"{unit} (less is better)", INK, font)
        for number, value in enumerate(values):
            top, width = HEAD + number * LINE, round((COLUMN - VALUE) * value / (max(values) or 1))
            pen.rectangle((left, top + 2, left + max(width, 1), top + LINE - 8), fill=BAR)
            pen.text((left + width + 6, top + 4), f"{value:.3g}", INK, small)
    return canvas
