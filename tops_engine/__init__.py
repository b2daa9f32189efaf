"""TOPS Engine: vision-language models several times faster, by keeping only the visual tokens that matter."""

from tops_engine.engine import Engine, shared_engine
from tops_engine.errors import TopsError
from tops_engine.messages import user_message
from tops_engine.report import Answer
from tops_engine.settings import Generation, ModelSpec, Pruning

__version__ = "0.1.0"

__all__ = ["Answer", "Engine", "Generation", "ModelSpec", "Pruning", "TopsError", "shared_engine", "user_message"]
