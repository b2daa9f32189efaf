"""Pictures of the kinds that differ in how much of them is equal: pages, screens, charts, photographs, videos."""

import shutil
from collections.abc import Callable
from pathlib import Path

import markdown
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import sync_playwright
from skimage import data

from tops_engine.media.images import open_image

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

#: Width and height of a rendered page in pixels: A4 at 120 dots an inch.
PAGE = (992, 1403)
STYLE = "body { font: 16px sans-serif; margin: 60px } table { border-collapse: collapse } td, th { padding: 4px 12px }"


def pages(names: tuple[str, ...] = ("get-started", "methods", "performance")) -> list[Image.Image]:
    """Render pages of this project's documentation in Chromium, from their beginnings."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    rendered = []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": PAGE[0], "height": PAGE[1]})
        for name in names:
            body = markdown.markdown((DOCS / f"{name}.md").read_text(), extensions=["tables", "fenced_code"])
            page.set_content(f"<style>{STYLE}</style>{body}")
            rendered.append(open_image(page.screenshot()))
        browser.close()
    return rendered


def receipts(count: int = 2) -> list[Image.Image]:
    """Draw receipts of a shop: 20 lines with prices, and their sum."""
    drawn = []
    for seed in range(count):
        random = np.random.default_rng(seed)
        receipt = Image.new("RGB", (560, 900), "white")
        draw, font = ImageDraw.Draw(receipt), ImageFont.load_default(22)
        cents = random.integers(50, 2500, 20)
        for line, price in enumerate(cents):
            draw.text(
                (40, 60 + 36 * line), f"{random.integers(1, 9)} x article {random.integers(100, 999)}", "black", font
            )
            draw.text((430, 60 + 36 * line), f"{price / 100:.2f}", "black", font)
        draw.text((40, 820), f"Sum {cents.sum() / 100:.2f}", "black", font)
        drawn.append(receipt)
    return drawn


def saved(*names: str) -> list[Image.Image]:
    """Read pictures of the documentation."""
    return [open_image(DOCS / name) for name in names]


def photographs() -> list[Image.Image]:
    return [Image.fromarray(values) for values in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())]


def screen_recording() -> list[Image.Image]:
    """Return 16 frames of a page that stands still and is scrolled twice."""
    (page,) = pages(("methods",))
    offsets = [0] * 6 + [200] * 6 + [400] * 4
    return [page.crop((0, top, PAGE[0], top + 700)) for top in offsets]


def camera() -> list[Image.Image]:
    """Return 16 frames of a camera that moves over a photograph."""
    photograph = Image.fromarray(data.coffee())
    return [photograph.crop((6 * number, 3 * number, 480 + 6 * number, 330 + 3 * number)) for number in range(16)]


KINDS: dict[str, Callable[[], list[Image.Image]]] = {
    "pages of the documentation": pages,
    "receipts": receipts,
    "screenshots": lambda: saved("studio.png", "comfyui.png", "comfyui_error.png"),
    "charts": lambda: saved("performance.png", "methods.png", "screen_agent.png"),
    "photographs": photographs,
}
VIDEOS: dict[str, Callable[[], list[Image.Image]]] = {"screen recording": screen_recording, "moving camera": camera}
