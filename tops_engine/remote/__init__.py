"""Models behind a server: :class:`RemoteEngine` asks a server that speaks OpenAI's protocol, such as vLLM's."""

from tops_engine.remote.answers import RemoteAnswer, RemoteTimings, RemoteUsage
from tops_engine.remote.engine import RemoteEngine

__all__ = ["RemoteAnswer", "RemoteEngine", "RemoteTimings", "RemoteUsage"]
