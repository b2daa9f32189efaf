"""Seeded mutations of JSON-like values, texts and bytes: what damaged files and hostile clients send."""

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

#: Values that programs stumble over.
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    2**31,
    2**63,
    2**64 - 1,
    -(2**70),
    10**400,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\x00",
    "\ud800",
    "../../etc/passwd",
    "/dev/zero",
    "file:///etc/passwd",
    "data:image/png;base64,AAAA",
    "<image>",
    "{{7*7}}",
    "%s%n%d",
    "日本語 😀",
    "a" * 5000,
    "[" * 2000,
    [],
    {},
    [[]],
    [None, None],
    ["1", 0],
    ["nowhere", 10**20],
    {"__value__": ["1", 0]},
    {"": {}},
)

#: How often a part of a value is put inside itself.
NESTING = 200


class Mutator:
    """Changes copies of values in ways that depend on the seed alone."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def value(self, value: Any) -> Any:
        """Return a copy of a JSON-like value with one to four changes."""
        changed = copy.deepcopy(value)
        for _ in range(self.random.randint(1, 4)):
            changed = self._change(changed)
        return changed

    def content(self, content: bytes) -> bytes:
        """Return bytes that are cut, overwritten, repeated or preceded by others."""
        changes: list[Callable[[bytes], bytes]] = [self._cut, self._overwrite, self._repeat, self._prefix]
        for _ in range(self.random.randint(1, 3)):
            content = self.random.choice(changes)(content)
        return content

    def header(self, content: bytes) -> bytes:
        """Return bytes whose first 100 are overwritten in one to eight places."""
        return self._overwrite(content[:100]) + content[100:]

    def _change(self, value: Any) -> Any:
        places = list(_places(value))
        if not places:
            return self._hostile()
        owner, key = self.random.choice(places)
        change = self.random.choice((self._replace, self._replace, self._remove, self._swap, self._nest, self._rename))
        change(owner, key, places)
        return value

    def _hostile(self) -> Any:
        return copy.deepcopy(self.random.choice(HOSTILE))

    def _replace(self, owner: Any, key: Any, places: list[Any]) -> None:
        owner[key] = self._hostile()

    def _remove(self, owner: Any, key: Any, places: list[Any]) -> None:
        del owner[key]

    def _swap(self, owner: Any, key: Any, places: list[Any]) -> None:
        """Put a copy of another part in the place of this one."""
        other, other_key = self.random.choice(places)
        owner[key] = copy.deepcopy(other[other_key])

    def _nest(self, owner: Any, key: Any, places: list[Any]) -> None:
        value = owner[key]
        for _ in range(self.random.choice((1, NESTING))):
            value = {"x": value} if self.random.random() < 0.5 else [value]
        owner[key] = value

    def _rename(self, owner: Any, key: Any, places: list[Any]) -> None:
        if isinstance(owner, dict):
            owner[str(self._hostile())[:50]] = owner.pop(key)
        else:
            owner.insert(key, copy.deepcopy(owner[key]))

    def _cut(self, content: bytes) -> bytes:
        return content[: self.random.randint(0, len(content))]

    def _overwrite(self, content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(self.random.randint(1, 8)):
            if changed:
                changed[self.random.randrange(len(changed))] = self.random.randrange(256)
        return bytes(changed)

    def _repeat(self, content: bytes) -> bytes:
        start = self.random.randint(0, len(content))
        return content[:start] + content[start : start + 50] * self.random.randint(1, 20) + content[start:]

    def _prefix(self, content: bytes) -> bytes:
        return self.random.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"null", b"[")) + content


def as_json(value: Any) -> str:
    """Return a value as JSON of the kind that Python and browsers write, NaN and lone surrogates included."""
    return json.dumps(value)


def _places(value: Any, depth: int = 0) -> Any:
    """Yield (owner, key) of every part of a value."""
    if depth > NESTING:
        return
    keys: Any = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key], depth + 1)
