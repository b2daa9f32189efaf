"""TOPS Engine: vision-language models on the few visual tokens that matter."""

import importlib
from typing import TYPE_CHECKING

from tops_engine.version import __version__ as __version__

if TYPE_CHECKING:
    from tops_engine.answers.base import ReasoningPiece
    from tops_engine.answers.report import Answer
    from tops_engine.conversation.messages import user_message, video_message
    from tops_engine.conversation.tools import Tools
    from tops_engine.encoding.encoder import PictureEncoder
    from tops_engine.encoding.places import encoder_at
    from tops_engine.engine import Engine, shared_engine
    from tops_engine.errors import TopsError
    from tops_engine.media.videos import Video, open_video
    from tops_engine.remote import RemoteAnswer, RemoteEngine
    from tops_engine.settings import Generation, ModelSpec, Pruning

__all__ = [
    "Answer",
    "Engine",
    "Generation",
    "ModelSpec",
    "PictureEncoder",
    "Pruning",
    "ReasoningPiece",
    "RemoteAnswer",
    "RemoteEngine",
    "Tools",
    "TopsError",
    "Video",
    "encoder_at",
    "open_video",
    "shared_engine",
    "user_message",
    "video_message",
]

_MODULES = {
    "Answer": "answers.report",
    "Engine": "engine",
    "Generation": "settings",
    "ModelSpec": "settings",
    "PictureEncoder": "encoding.encoder",
    "Pruning": "settings",
    "ReasoningPiece": "answers.base",
    "RemoteAnswer": "remote",
    "RemoteEngine": "remote",
    "Tools": "conversation.tools",
    "TopsError": "errors",
    "encoder_at": "encoding.places",
    "shared_engine": "engine",
    "Video": "media.videos",
    "open_video": "media.videos",
    "user_message": "conversation.messages",
    "video_message": "conversation.messages",
}


def __getattr__(name: str) -> object:
    # Imported at first use: torch and transformers take seconds to load, which `tops --help` does not need.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
