"""Texts that the frontend changes when it sends a prompt: choices in braces, and file names with patterns."""

import random
import re
from collections.abc import Iterable
from datetime import datetime

from tops_workflow.graphs import Node
from tops_workflow.widgets import as_text

#: Classes whose ``filename_prefix`` may contain ``%date:yyyy-MM-dd%`` and ``%Node.widget%``.
SAVE_NODES = frozenset(
    (
        "SaveImage SaveImageAdvanced SaveSVGNode SaveVideo SaveAnimatedWEBP SaveWEBM SaveAudio SaveAudioMP3 "
        "SaveAudioOpus SaveAudioAdvanced SaveGLB Save3DAdvanced SaveGaussianSplat SavePointCloud SaveAnimatedPNG "
        "CLIPSave VAESave ModelSave LoraSave SaveLatent"
    ).split()
)
#: The property by which a pattern finds its node; the class where a file has none.
PATTERN_NAME = "Node name for S&R"

COMMENTS = re.compile(r"/\*[\s\S]*?\*/|//.*")
FORBIDDEN_IN_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')
DATE_PARTS = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyyy?|yy")
MAX_DEPTH = 50


def choose(text: str, depth: int = 0) -> str:
    """Return a text without comments, with one random option of each ``{a|b}``; ``\\{`` is a brace."""
    text = COMMENTS.sub("", text)
    result, position = "", 0
    while position < len(text):
        if text[position] == "\\":
            result += text[position : position + 2]
            position += 2
        elif text[position] == "{" and depth < MAX_DEPTH:
            options, position = _options(text, position + 1)
            result += choose(random.choice(options), depth + 1)
        else:
            result += text[position]
            position += 1
    return re.sub(r"\\([{}|])", r"\1", result)


def _options(text: str, position: int) -> tuple[list[str], int]:
    """Return the options of the braces that begin before a position, and the position after them."""
    options, depth = [""], 0
    while position < len(text):
        part = text[position : position + 2] if text[position] == "\\" else text[position]
        position += len(part)
        if part == "}" and depth == 0:
            break
        if part == "|" and depth == 0:
            options.append("")
            continue
        depth += {"{": 1, "}": -1}.get(part, 0)
        options[-1] += part
    return options, position


def fill_patterns(text: str, nodes: Iterable[Node], now: datetime) -> str:
    """Return a text with its patterns filled in; a pattern that fits nothing stays as it is."""
    nodes = list(nodes)

    def fill(match: re.Match[str]) -> str:
        name, dot, widget_name = match[1].partition(".")
        if not dot or "." in widget_name:
            return _date(name[5:], now) if name.startswith("date:") and not dot else match[0]
        named = [node for node in nodes if node.properties.get(PATTERN_NAME, _own_name(node)) == name]
        found = named or [node for node in nodes if node.title == name]
        widget = found[0].widget(widget_name) if found else None
        return match[0] if widget is None else FORBIDDEN_IN_NAMES.sub("_", str(as_text(widget.value)))

    return re.sub(r"%([^%]+)%", fill, text)


def _own_name(node: Node) -> str | None:
    return None if node.kind in SAVE_NODES else node.kind


def _date(pattern: str, now: datetime) -> str:
    numbers = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def fill(match: re.Match[str]) -> str:
        part = match[0]
        if part[0] == "y":
            return {"yyyy": f"{now:%Y}", "yy": f"{now:%y}"}.get(part, part)
        return str(numbers[part[0]]).zfill(len(part))

    return DATE_PARTS.sub(fill, pattern)
