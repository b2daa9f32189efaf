"""Small checkpoints of families by what their vision towers can leave out, and what they see and say."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.conftest import Picture
from tests.support.checkpoints import save_llava, save_llava_next, save_siglip_llava
from tests.support.checkpoints_gemma import save_gemma3
from tests.support.checkpoints_glm import save_glm4v
from tests.support.checkpoints_idefics3 import save_idefics3, save_smolvlm
from tests.support.checkpoints_internvl import save_internvl
from tests.support.checkpoints_lfm2 import save_lfm2_vl
from tests.support.checkpoints_minicpm import save_minicpmv4_6
from tests.support.checkpoints_mistral import save_mistral3
from tests.support.checkpoints_qwen import save_qwen2_5_vl, save_qwen2_vl, save_qwen3_5, save_qwen3_vl
from tests.support.checkpoints_video import save_next_video, save_onevision
from tops_engine.conversation.messages import Message, read_conversation, user_message, video_message
from tops_engine.engine import Engine
from tops_engine.families import Family
from tops_engine.families.prompt import Prompt
from tops_engine.methods import VisualTokens
from tops_engine.methods.tokens import SIGNALS
from tops_engine.tower import TowerOptions

WHOLE, EXACT = TowerOptions(), TowerOptions("exact")
#: Rounding of another batch size.
ROUNDING = 2e-5

TILES: dict[str, Callable[..., Path]] = {
    "llava": save_llava,
    "siglip": save_siglip_llava,
    "llava_next": save_llava_next,
    "idefics3": save_idefics3,
    "internvl": save_internvl,
    "smolvlm": save_smolvlm,
}
PACKED: dict[str, Callable[..., Path]] = {
    "qwen2_5_vl": save_qwen2_5_vl,
    "qwen3_vl": save_qwen3_vl,
    "qwen2_vl": save_qwen2_vl,
    "qwen3_5": save_qwen3_5,
}
ONLY_EQUAL: dict[str, Callable[..., Path]] = {
    "gemma3": save_gemma3,
    "glm4v": save_glm4v,
    "onevision": save_onevision,
    "next_video": save_next_video,
}
WHOLE_ONLY: dict[str, Callable[..., Path]] = {
    "mistral3": save_mistral3,
    "lfm2_vl": save_lfm2_vl,
    "minicpm": save_minicpmv4_6,
}
#: Towers that repeat another's guarantee.
REPEATED = {"smolvlm", "minicpm", "qwen2_vl", "qwen3_5", "gemma3", "glm4v", "onevision", "next_video", "lfm2_vl"}
VIDEOS = {"smolvlm", "internvl", "onevision", "next_video", *PACKED, "glm4v"}


class Loaded(NamedTuple):
    name: str
    engine: Engine

    @property
    def family(self) -> Family:
        return self.engine.family


def towers(*groups: dict[str, Callable[..., Path]]) -> pytest.MarkDecorator:
    names = [name for group in groups for name in group]
    marked = [pytest.param(name, marks=pytest.mark.full if name in REPEATED else ()) for name in names]
    return pytest.mark.parametrize("loaded", marked, indirect=True)


def document(picture: Picture) -> Image.Image:
    """Return a white page with a picture in a corner, so that most tiles and patches are equal."""
    page = Image.new("RGB", (300, 290), "white")
    page.paste(picture(100, 60), (30, 40))
    return page


def conversations(loaded: Loaded, picture: Picture) -> list[list[Message]]:
    one, other = picture(120, 90), picture(70, 130, 1)
    questions = user_message("What?", one, one, document(picture)), user_message("Where?", other, one)
    asked: list[list[Message]] = [[question] for question in questions]
    if loaded.name in VIDEOS:
        still, moved = picture(90, 60, 2), picture(90, 60, 3)
        asked.append([video_message("When?", [still] * 4 + [moved] * 2, fps=2.0)])
    return asked


def prepared(loaded: Loaded, picture: Picture) -> list[Prompt]:
    return [loaded.family.prepare(read_conversation(messages)) for messages in conversations(loaded, picture)]


@torch.inference_mode()
def encoded(family: Family, prompts: Sequence[Prompt], options: TowerOptions = WHOLE) -> list[VisualTokens]:
    return [image for images in family.encode(prompts, options) for image in images]


def values(image: VisualTokens) -> dict[str, Tensor]:
    """Return everything that the tower says of a picture."""
    with torch.inference_mode():
        named = {name: getattr(image, name)() for name in SIGNALS if getattr(image, name)}
    stack = {f"deepstack {number}": rows for number, rows in enumerate(image.deepstack)}
    return named | stack | {"features": image.features}
