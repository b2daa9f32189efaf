"""Where the nodes, links and groups of a template lie, in both renderers of the frontend."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

#: Pixels of a node's title, which lies above its place; around the nodes of a group; and of a group's own title.
TITLE, GROUP_MARGIN, GROUP_TITLE = 30, 30, 30

# A link begins and ends at the middle of a slot.
SLOT, FIRST_SLOT = 20, 14

#: Parts into which a link is divided to see what lies before it.
STEPS = 40


@dataclass(frozen=True)
class Box:
    """A node without its title, in pixels of the canvas."""

    width: int
    height: int
    left: int = 0
    top: int = 0

    def at(self, left: float, top: float) -> "Box":
        return replace(self, left=round(left), top=round(top))

    def gap(self, other: "Box") -> int:
        """Return the pixels between two nodes, titles included: the larger of both directions; below 0 they overlap."""
        across = max(self.left - other.left - other.width, other.left - self.left - self.width)
        down = max(self.top - TITLE - other.top - other.height, other.top - TITLE - self.top - self.height)
        return max(across, down)

    def holds(self, x: float, y: float) -> bool:
        return self.left < x < self.left + self.width and self.top - TITLE < y < self.top + self.height


def boxes_of(node: Mapping[str, Any], sizes: Mapping[str, Mapping[str, Sequence[int]]]) -> Box:
    """Return the box that holds a node in both renderers: the larger of its measured sizes and of its saved one."""
    measured = [renderer[str(node["id"])] for renderer in sizes.values() if str(node["id"]) in renderer]
    width, height = (max(values) for values in zip(node["size"], *measured, strict=False))
    return Box(round(width), round(height), *map(round, node["pos"]))


def links_behind_nodes(links: Sequence[Sequence[Any]], placed: Mapping[int, Box]) -> list[tuple[int, int]]:
    """Return (link, node) for every node that lies before a part of a link, as the frontend draws links."""
    found = []
    for number, source, output, target, entry, *_ in links:
        begin, end = placed[source], placed[target]
        left, right = begin.left + begin.width, end.left
        top, bottom = (box.top + FIRST_SLOT + SLOT * slot for box, slot in ((begin, output), (end, entry)))
        pull = math.hypot(right - left, bottom - top) / 4
        xs, ys = (left, left + pull, right - pull, right), (top, top, bottom, bottom)
        # The curve lies in the rectangle around the four points that define it.
        near = [
            (node, box)
            for node, box in placed.items()
            if node not in (source, target)
            and min(xs) < box.left + box.width
            and max(xs) > box.left
            and min(ys) < box.top + box.height
            and max(ys) > box.top - TITLE
        ]
        if near:
            points = [_point(xs, ys, step / STEPS) for step in range(STEPS + 1)]
            found += [(number, node) for node, box in near if any(box.holds(x, y) for x, y in points)]
    return found


def _point(xs: Sequence[float], ys: Sequence[float], t: float) -> tuple[float, float]:
    """Return a point of a cubic Bezier curve."""
    first, second, third, fourth = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
    x = first * xs[0] + second * xs[1] + third * xs[2] + fourth * xs[3]
    return x, first * ys[0] + second * ys[1] + third * ys[2] + fourth * ys[3]
