"""The code blocks of README and docs, and how a shell block is read."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "tops_engine" / "mini" / "weights" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]

FENCE = re.compile(
    r"^(?:<!-- not executed: (?P<reason>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)


class Block(NamedTuple):
    """A fenced block; ``reason`` says why it is not executed."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix()
    return [
        Block(name, text[: match.start()].count("\n") + 1, match["language"], match["text"], match["reason"])
        for match in FENCE.finditer(text)
    ]


class Command(NamedTuple):
    """A line of a shell block: variables that are set for it, and its words."""

    variables: dict[str, str]
    words: list[str]


def commands_of(block: Block) -> Iterator[Command]:
    """Split a shell block in commands, without comments and with continued lines joined."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        variables: dict[str, str] = {}
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, value = words.pop(0).partition("=")
            variables[name] = value
        if words:
            yield Command(variables, words)
